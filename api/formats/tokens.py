"""Formats events as the answers of the token endpoints."""

from collections.abc import Sequence
from typing import Any

from shared.domain.events import Event, Tokenized, Usage
from shared.domain.job import Job


class _TokensCollector:
    def __init__(self, job: Job) -> None:
        self._model = job.model
        self._ids: tuple[int, ...] = ()
        self._texts: tuple[str, ...] = ()

    def add(self, event: Event) -> None:
        if isinstance(event, Tokenized):
            self._ids, self._texts = event.token_ids, event.texts


class TokenListCollector(_TokensCollector):
    """Collects the answer of `/tokenize`, in vLLM's form."""

    def __init__(self, job: Job, *, context_length: int) -> None:
        super().__init__(job)
        self._context_length = context_length
        self._with_texts = bool(job.request["texts"])

    def body(self, usage: Usage) -> dict[str, Any]:
        return {
            "object": "tokens",
            "model": self._model,
            "count": len(self._ids),
            "max_model_len": self._context_length,
            "tokens": self._ids,
            "token_strs": self._texts if self._with_texts else None,
        }


class TokenCountCollector(_TokensCollector):
    def __init__(self, job: Job, *, context_length: int, max_tokens: int) -> None:
        super().__init__(job)
        self._context_length = context_length
        self._max_tokens = max_tokens

    def body(self, usage: Usage) -> dict[str, Any]:
        return {
            "object": "token_count",
            "model": self._model,
            "count": len(self._ids),
            "context_length": self._context_length,
            "fits": len(self._ids) + self._max_tokens <= self._context_length,
        }


class InputTokensCollector(_TokensCollector):
    """Collects the answer of `/v1/messages/count_tokens`."""

    def body(self, usage: Usage) -> dict[str, Any]:
        return {"input_tokens": len(self._ids)}


class ResponseInputTokensCollector(InputTokensCollector):
    """Collects the answer of `/v1/responses/input_tokens`."""

    def body(self, usage: Usage) -> dict[str, Any]:
        return {"object": "response.input_tokens", **super().body(usage)}


class TextCollector(_TokensCollector):
    def body(self, usage: Usage) -> dict[str, Any]:
        return {"object": "text", "model": self._model, "prompt": "".join(self._texts)}


def checks(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return token counts as FastChat's `/api/v1/token_check` does."""
    told = [
        {"fits": each["fits"], "tokenCount": each["count"], "contextLength": each["context_length"]} for each in counts
    ]
    return {"prompts": told}
