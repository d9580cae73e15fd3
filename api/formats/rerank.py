"""Formats vectors as a ranking of documents, the most relevant first."""

from typing import Any

from api.formats.common import estimated
from shared.domain.events import Embedded, Event, Usage
from shared.domain.job import Job


class RankingCollector:
    """Collects a ranking. The first vector is the query's; all have unit length, so that their product is the cosine.
    If the query has none, each of the others is a cross-encoder's score."""

    def __init__(self, job: Job, texts: list[str], *, top_n: int | None, with_texts: bool) -> None:
        self.job = job
        self._texts = texts
        self._top_n = top_n
        self._with_texts = with_texts
        self._vectors: dict[int, tuple[float, ...]] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, Embedded):
            self._vectors[event.index] = event.vector

    def scores(self) -> list[float]:
        """Return the score of each text."""
        query = self._vectors.get(0, (1.0,))
        return [
            sum(a * b for a, b in zip(query, self._vectors[index + 1], strict=True))
            for index in range(len(self._texts))
        ]

    def body(self, usage: Usage) -> dict[str, Any]:
        scores = self.scores()
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: self._top_n]
        results = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": self._texts[index]}} if self._with_texts else {})
            for index in ranked
        ]
        used = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens} | estimated(usage)
        return {"id": self.job.id, "object": "list", "model": self.job.model, "results": results, "usage": used}
