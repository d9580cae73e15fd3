"""The path for models whose attention cannot be replaced: each sequence by itself, with transformers' own cache.
Slower than a batch, and named as such in `/v1/models`."""

from typing import Any

import torch
from transformers import DynamicCache

from workers.engine.base import Defaults, Limits, Tokenizer
from workers.engine.sampler import choose
from workers.scheduler import Batch, Row
from workers.sequence import Sequence


class StepwiseEngine:
    kind = "stepwise"

    def __init__(self, model: Any, tokenizer: Tokenizer, *, limits: Limits, defaults: Defaults) -> None:
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self._model = model
        self._caches: dict[Sequence, Any] = {}

    def step(self, batch: Batch) -> list[int]:
        rows = [self._compute(row) for row in batch.rows]
        sampled = [logits for logits, row in zip(rows, batch.rows, strict=True) if row.samples]
        return choose(torch.stack(sampled), [row.sequence for row in batch.sampling]) if sampled else []

    @torch.inference_mode()
    def _compute(self, row: Row) -> torch.Tensor:
        """Float32 logits [vocabulary] of the row's last token."""
        cache = self._caches.setdefault(row.sequence, DynamicCache(config=self._model.config))
        ids = torch.tensor([row.sequence.tokens(row.start, row.count)], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        last: torch.Tensor = out.logits[0, -1].float()
        return last

    def free(self, sequence: Sequence) -> None:
        self._caches.pop(sequence, None)
