"""Continuous batching over transformers' own model code: every step packs all sequences into one row."""

from array import array
from typing import Any

import numpy as np
import torch

from workers.engine.base import Defaults, Embedder, Tokenizer
from workers.engine.faults import translated
from workers.engine.kv_cache import KVCache
from workers.engine.lora import Adapters
from workers.engine.packing import Chunk, Step
from workers.engine.sampler import choose, score
from workers.limits import BLOCK_SIZE, Limits
from workers.scheduler import Batch, Row
from workers.sequence import Sampled, Sequence


class BatchedEngine:
    kind = "batched"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        limits: Limits,
        defaults: Defaults,
        cache: KVCache,
        deterministic: bool = False,
    ) -> None:
        """`model`: a causal LM of transformers whose attention is set to `attention.NAME`. `deterministic`: logits of
        a sequence do not depend, bit for bit, on what else is in its steps or how its prompt is cut."""
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.model = model
        self.embedder: Embedder | None = None
        self.adapters = Adapters()
        self.cache = cache
        self._deterministic = deterministic
        self._device = model.device

    def step(self, batch: Batch) -> list[Sampled]:
        with translated():
            return choose(self.logits(batch), [row.sequence for row in batch.sampling])

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 [sampling rows, vocabulary]. Prompts that are to be scored are."""
        ids = array("q")
        kept: list[tuple[Row, range]] = []
        for row in batch.rows:
            begin = len(ids)
            ids += row.sequence.ids[row.start : row.start + row.count]
            if row.scoring or row.samples:
                kept.append((row, range(begin if row.scoring else len(ids) - 1, len(ids))))
        keep = array("q", [at for _, where in kept for at in where] or [0])
        ids, keep = self._in_company(ids), self._in_company(keep)
        step = self._plan(batch, len(ids))
        names, counts = [row.sequence.adapter for row in batch.rows], [row.count for row in batch.rows]
        with self.adapters.computing(names, counts, self._device):
            out = self.model(
                input_ids=self._tensor(np.array(ids)).unsqueeze(0),
                position_ids=step.positions.long().unsqueeze(0),
                use_cache=False,
                logits_to_keep=self._tensor(np.array(keep)),
                penstock_step=step,
            )
        return _sampling_rows(out.logits[0], kept)

    def free(self, sequence: Sequence) -> None:
        """Nothing: what a sequence holds is its blocks, and those are the scheduler's."""

    def _in_company(self, rows: "array[int]") -> "array[int]":
        """One row alone comes twice in deterministic mode: libraries multiply a vector by other code than a matrix."""
        return rows * 2 if self._deterministic and len(rows) == 1 else rows

    def _plan(self, batch: Batch, tokens: int) -> Step:
        tables = np.zeros((len(batch.rows), max(len(row.sequence.blocks) for row in batch.rows)), np.int32)
        counts, starts = [], []
        for at, row in enumerate(batch.rows):
            tables[at, : len(row.sequence.blocks)] = row.sequence.blocks
            counts.append(row.count)
            starts.append(row.start)
        owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        begins = np.cumsum([0, *counts], dtype=np.int32)
        positions = np.arange(len(owners), dtype=np.int32) + np.repeat(np.array(starts, np.int32) - begins[:-1], counts)
        if len(owners) < tokens:
            owners, positions = owners.repeat(2), positions.repeat(2)
        decoding = sum(row.decoding for row in batch.rows)
        return Step(
            cache=self.cache,
            blocks=self._tensor(tables[owners, positions // BLOCK_SIZE].astype(np.int64)),
            offsets=self._tensor((positions % BLOCK_SIZE).astype(np.int64)),
            owners=self._tensor(owners),
            positions=self._tensor(positions),
            tables=self._tensor(tables),
            decoding=decoding,
            chunks=[
                Chunk(int(begins[at]), int(begins[at + 1]), at, starts[at]) for at in range(decoding, len(batch.rows))
            ],
            alone=self._deterministic,
        )

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _sampling_rows(logits: torch.Tensor, kept: list[tuple[Row, range]]) -> torch.Tensor:
    """Those of the rows that sample; what else was kept is for their prompts' scores."""
    if not any(row.scoring for row, _ in kept):
        return logits[: len(kept)].float()
    last, end = [], 0
    for row, where in kept:
        begin, end = end, end + len(where)
        if row.scoring:
            score(logits[begin:end], row.sequence, row.start)
        if row.samples:
            last.append(end - 1)
    return logits[last].float()
