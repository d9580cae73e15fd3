"""Formats events as OpenAI's list of embeddings."""

from typing import Any

from api.formats.common import estimated
from shared.domain.codec import vector_to_base64
from shared.domain.events import Embedded, Event, Usage
from shared.domain.job import Job


class EmbeddingCollector:
    def __init__(self, job: Job, *, base64: bool) -> None:
        self.job = job
        self._base64 = base64
        self._vectors: dict[int, tuple[float, ...]] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, Embedded):
            self._vectors[event.index] = event.vector

    def body(self, usage: Usage) -> dict[str, Any]:
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector_to_base64(vector) if self._base64 else vector,
            }
            for index, vector in sorted(self._vectors.items())
        ]
        tokens = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens} | estimated(usage)
        return {"object": "list", "data": data, "model": self.job.model, "usage": tokens}
