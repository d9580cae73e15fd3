"""The batched engine: continuous batching over transformers' own model code, with all sequences of a step packed into
one row."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from workers.engines.native.causal.sampler import choose, score
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Chunk, Kernel, Plan, Step, bucket_size
from workers.engines.native.torch_errors import translated
from workers.engines.native.transfer import Numbers, uploaded, uploaded_together
from workers.engines.native.weights.lora import Adapters
from workers.protocols import Defaults, Embedder
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.scheduling.scheduler import Batch, Row
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.tokenizer import Tokenizer


class BatchedEngine:
    kind = "batched"
    dtype = ""
    writes = True

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        limits: EngineLimits,
        defaults: Defaults,
        cache: KVCache,
        kernel: Kernel,
        deterministic: bool = False,
    ) -> None:
        """`model` is a causal LM of transformers whose attention is set to `attention.NAME`. With `deterministic`, the
        logits of a sequence do not depend, bit for bit, on what else is in its steps or on the chunks of its prompt."""
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.model = model
        self.embedder: Embedder | None = None
        self.adapters = Adapters(alone=deterministic)
        self.tell: Callable[[Plan], None] | None = None  # sends each step to the other ranks
        self.cache = cache
        self.kernel = kernel
        self._deterministic = deterministic
        self._device = model.device

    def step(self, batch: Batch) -> list[Sampled]:
        with translated():
            return choose(self.logits(batch), [row.sequence for row in batch.sampling])

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 [sampling rows, vocabulary]. Prompts whose logprobs are wanted are scored, too."""
        kept: list[tuple[Row, range]] = []
        end = 0
        for row in batch.rows:
            begin, end = end, end + row.count
            if row.scoring or row.samples:
                kept.append((row, range(begin if row.scoring else end - 1, end)))
        plan = self._plan(batch, [at for _, where in kept for at in where] or [0])
        with translated(together=self.tell is not None):
            if self.tell:
                self.tell(plan)
            logits = self.compute(plan)
        return _sampling_rows(logits, kept)

    @torch.inference_mode()
    def compute(self, plan: Plan) -> torch.Tensor:
        """Logits [rows to keep, vocabulary]."""
        step, ids, keep = self._step(plan)
        with self.adapters.computing(plan.adapters, plan.counts, self._device):
            logits: torch.Tensor = self.model(
                input_ids=ids.unsqueeze(0),
                position_ids=step.positions.long().unsqueeze(0),
                use_cache=False,
                logits_to_keep=keep,
                penstock_step=step,
            ).logits[0]
        return logits

    def free(self, sequence: Sequence) -> None:
        """Do nothing: a sequence holds only blocks, and those are the scheduler's."""

    def _plan(self, batch: Batch, keep: list[int]) -> Plan:
        ids = array("q")
        tables = np.zeros((len(batch.rows), max(len(row.sequence.blocks) for row in batch.rows)), np.int32)
        for at, row in enumerate(batch.rows):
            ids += row.sequence.ids[row.start : row.start + row.count]
            tables[at, : len(row.sequence.blocks)] = row.sequence.blocks
        counts, starts = [row.count for row in batch.rows], [row.start for row in batch.rows]
        begins = np.cumsum([0, *counts], dtype=np.int32)
        owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        positions = np.arange(len(owners), dtype=np.int32) + np.repeat(np.array(starts, np.int32) - begins[:-1], counts)
        decoding = sum(row.decoding for row in batch.rows)
        filled = self._filled(np.array(ids))
        return Plan(
            ids=filled,
            keep=self._filled(np.array(keep)),
            owners=self._filled(owners),
            positions=self._filled(positions),
            tables=tables,
            decoding=decoding,
            chunks=[
                Chunk(int(begins[at]), int(begins[at + 1]), at, starts[at]) for at in range(decoding, len(batch.rows))
            ],
            adapters=[row.sequence.adapter for row in batch.rows],
            counts=[*counts[:-1], counts[-1] + len(filled) - len(ids)],
        )

    def _filled(self, rows: Numbers) -> Numbers:
        """Pad to a bucket size with the last row; copies write the same values to the same place. In deterministic mode
        a single row comes twice: libraries multiply a vector by other code than a matrix."""
        count = 2 if self._deterministic and len(rows) == 1 else bucket_size(len(rows), self._device)
        return rows if count == len(rows) else np.pad(rows, (0, count - len(rows)), mode="edge")

    def _step(self, plan: Plan) -> tuple[Step, torch.Tensor, torch.Tensor]:
        """The step on the device, the token ids, and the rows whose logits are wanted."""
        singles = plan.positions if self._deterministic else plan.positions[: plan.decoding]
        places = plan.tables[plan.owners, plan.positions // BLOCK_SIZE].astype(np.int64)
        slots = (plan.positions % BLOCK_SIZE).astype(np.int64)
        ids, keep, blocks, offsets = uploaded_together([plan.ids, plan.keep, places, slots], self._device)
        owners, positions, tables = uploaded_together(
            [plan.owners, plan.positions, plan.tables.reshape(-1)], self._device
        )
        step = Step(
            cache=self.cache,
            blocks=blocks,
            offsets=offsets,
            owners=owners,
            positions=positions,
            tables=tables.view(plan.tables.shape),
            decoding=plan.decoding,
            chunks=plan.chunks,
            longest=int(singles.max(initial=-1)) + 1,
            kernel=self.kernel,
            alone=self._deterministic,
        )
        return step, ids, keep


def _sampling_rows(logits: torch.Tensor, kept: list[tuple[Row, range]]) -> torch.Tensor:
    """The logits of the rows that sample; the others were kept for the scores of their prompts."""
    if not any(row.scoring for row, _ in kept):
        return logits[: len(kept)].float()
    last, end = [], 0
    for row, where in kept:
        begin, end = end, end + len(where)
        if row.scoring:
            score(logits[begin:end], row.sequence, row.start)
        if row.samples:
            last.append(end - 1)
    return logits[uploaded(np.array(last, dtype=np.int64), logits.device)].float()
