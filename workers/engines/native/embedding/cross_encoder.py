"""A cross-encoder scores a query and a text that it reads together: a model with a classification head of one label."""

from collections.abc import Sequence as Seq
from typing import Any

import torch

from workers.engines.native.torch_errors import translated


class CrossEncoder:
    """Its vectors have one number: how well the text answers the query, from 0 to 1."""

    size = 1

    def __init__(self, model: Any, tokenizer: Any, *, tokens_max: int) -> None:
        self.tokens_max = tokens_max
        self._model = model
        self._tokenizer = tokenizer
        self._padding = tokenizer.pad_token_id or 0
        self._typed = getattr(model.config, "type_vocab_size", 1) > 1

    def pair(self, query: str, text: str, keep: int | None) -> list[int]:
        """Join query and text; the text is cut so that both have at most `keep` tokens."""
        cut = {"truncation": "only_second", "max_length": keep} if keep else {}
        ids: list[int] = self._tokenizer(query, text, **cut, verbose=False).input_ids
        return ids

    @torch.inference_mode()
    def embed(self, passages: Seq[Seq[int]]) -> list[list[float]]:
        longest = max(map(len, passages))
        rows = [[*passage, *[self._padding] * (longest - len(passage))] for passage in passages]
        ids = torch.tensor(rows, device=self._model.device)
        lengths = torch.tensor([[len(passage)] for passage in passages], device=ids.device)
        known = torch.arange(longest, device=ids.device) < lengths
        more = {"token_type_ids": self._types(ids, known)} if self._typed else {}
        with translated():
            scores: list[list[float]] = (
                self._model(input_ids=ids, attention_mask=known.long(), **more).logits.float().sigmoid().tolist()
            )
        return scores

    def _types(self, ids: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Token types: 1 for the text, which begins after the first separator."""
        separators = (ids == self._tokenizer.sep_token_id).long()
        after: torch.Tensor = (separators.cumsum(1) - separators).clamp(max=1)
        return after * known
