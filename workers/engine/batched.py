"""Continuous batching over transformers' own model code: every step packs all sequences into one row."""

from typing import Any

import torch

from workers.engine.attention import Chunk, Step
from workers.engine.base import Defaults, Limits, Tokenizer
from workers.engine.kv_cache import KVCache
from workers.engine.sampler import choose
from workers.scheduler import Batch
from workers.sequence import Sequence


class BatchedEngine:
    kind = "batched"

    def __init__(self, model: Any, tokenizer: Tokenizer, *, limits: Limits, defaults: Defaults) -> None:
        """`model`: a causal LM of transformers whose attention is set to `attention.NAME`."""
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.model = model
        self._device = model.device
        self._cache = KVCache(slots=limits.sequences_max, length=limits.context_length)

    def step(self, batch: Batch) -> list[int]:
        logits = self.logits(batch)
        return choose(logits, [row.sequence for row in batch.sampling])

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 [sampling rows, vocabulary]."""
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for row in batch.rows:
            ids += row.sequence.tokens(row.start, row.count)
            positions += range(row.start, row.start + row.count)
            if row.samples:
                last.append(len(ids) - 1)
        out = self.model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(last or [0], device=self._device),
            penstock_step=self._plan(batch),
        )
        rows: torch.Tensor = out.logits[0, : len(last)].float()
        return rows

    def free(self, sequence: Sequence) -> None:
        self._cache.close(sequence)

    def _plan(self, batch: Batch) -> Step:
        slots, positions, chunks, begin = [], [], [], 0
        for row in batch.rows:
            slot = self._cache.slot(row.sequence)
            if row.decoding:
                slots.append(slot)
                positions.append(row.start)
            else:
                chunks.append(Chunk(begin, begin + row.count, slot, row.start))
            begin += row.count
        return Step(
            cache=self._cache,
            slots=torch.tensor(slots, dtype=torch.long, device=self._device),
            positions=torch.tensor(positions, dtype=torch.long, device=self._device),
            span=max(slots, default=-1) + 1,
            length=max(positions, default=-1) + 1,
            chunks=chunks,
        )
