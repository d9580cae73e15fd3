"""Formats vectors as vLLM's scores of pairs of texts, and as its pooled vectors."""

from collections.abc import Sequence
from typing import Any

from api.formats.common import estimated
from api.formats.embedding import EmbeddingCollector
from api.formats.rerank import RankingCollector
from shared.domain.events import Usage

Json = dict[str, Any]


class ScoreCollector(RankingCollector):
    """Collects the scores of texts beside one query, in the order of the texts."""

    def body(self, usage: Usage) -> Json:
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(self.scores())]
        tokens = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens, "completion_tokens": 0}
        return {
            "id": self.job.id,
            "object": "list",
            "created": self.job.created_ms // 1000,
            "model": self.job.model,
            "data": data,
            "usage": tokens | estimated(usage),
        }


def joined(answers: Sequence[Json]) -> Json:
    """Return the scores of several jobs, of one pair each, as one answer."""
    first = answers[0]
    data = [answer["data"][0] | {"index": index} for index, answer in enumerate(answers)]
    names = ("prompt_tokens", "total_tokens", "completion_tokens")
    return first | {
        "data": data,
        "usage": first["usage"] | {name: sum(answer["usage"][name] for answer in answers) for name in names},
    }


class PooledCollector(EmbeddingCollector):
    """Collects vectors, as `/pooling` calls them."""

    def body(self, usage: Usage) -> Json:
        whole = super().body(usage)
        data = [{"index": each["index"], "object": "pooling", "data": each["embedding"]} for each in whole["data"]]
        return {"id": self.job.id, **whole, "created": self.job.created_ms // 1000, "data": data}
