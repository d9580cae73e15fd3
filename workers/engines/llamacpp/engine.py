"""The llama.cpp engine: our scheduler makes the batch, `llama_decode` computes it, our sampler chooses tokens."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workers.engines.llamacpp.cells import Cells, Memory
from workers.engines.llamacpp.sampler import choose, score
from workers.protocols import Defaults, Embedder
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch, Row
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.tokenizer import Tokenizer

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Decoder(Memory, Protocol):
    """A context of llama.cpp."""

    def decode(self, tokens: Int32s, positions: Int32s, ids: Int32s, wanted: npt.NDArray[np.bool_]) -> Floats:
        """Compute a batch, one number in each array for each token. Returns float32 [wanted tokens, vocabulary], which
        the next call overwrites. Raises OutOfMemory, EngineBroken, EngineError."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a row that are computed at once: `count` from `start` on."""

    row: Row
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        return self.stop == self.row.sequence.length

    @property
    def kept(self) -> int:
        """The number of its last tokens that must give logits."""
        return self.count if self.row.scoring else int(self.samples)


class LlamaEngine:
    kind = "llamacpp"
    dtype = ""
    writes = True

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        limits: EngineLimits,
        defaults: Defaults,
        step_tokens_max: int,
        saved_tokens_max: int = 0,
    ) -> None:
        """`decoder` holds as many sequences as run, and decodes `step_tokens_max` tokens at a time. At most
        `saved_tokens_max` tokens of past sequences are kept in main memory for those to come."""
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.embedder: Embedder | None = None
        self.adapters: frozenset[str] = frozenset()
        self._decoder = decoder
        self._cells = Cells(decoder, limits.sequences_max, saved_tokens_max=saved_tokens_max)
        self._step_tokens_max = step_tokens_max

    def step(self, batch: Batch) -> list[Sampled]:
        wanted = [row.sequence for row in batch.sampling]
        last: dict[Sequence, Floats] = {}
        parts = self._parts(batch.rows)
        for part in parts:
            last |= self._compute(part, copied=len(parts) > 1)
        return choose([last[sequence] for sequence in wanted], wanted)

    def free(self, sequence: Sequence) -> None:
        self._cells.free(sequence)

    def _parts(self, rows: Seq[Row]) -> list[list[Chunk]]:
        """Return what to compute, in parts that the decoder takes at once: one, unless cells were lost that the
        scheduler believes to be there."""
        parts: list[list[Chunk]] = [[]]
        room = self._step_tokens_max
        for row in rows:
            start, stop = self._cells.prepare(row.sequence, row.start).tokens, row.start + row.count
            while start < stop:
                if not room:
                    parts.append([])
                    room = self._step_tokens_max
                count = min(room, stop - start)
                parts[-1].append(Chunk(row, start, count))
                start, room = start + count, room - count
        return parts

    def _compute(self, chunks: Seq[Chunk], *, copied: bool) -> dict[Sequence, Floats]:
        """The logits of each sequence that samples. They are overwritten by the next call unless they are `copied`."""
        logits = self._decode(chunks)
        last: dict[Sequence, Floats] = {}
        end = 0
        for chunk in chunks:
            begin, end = end, end + chunk.kept
            if chunk.row.scoring:
                score(logits[begin:end], chunk.row.sequence, chunk.start)
            if chunk.samples:
                last[chunk.row.sequence] = logits[end - 1].copy() if copied else logits[end - 1]
        return last

    def _decode(self, chunks: Seq[Chunk]) -> Floats:
        held = [self._cells.prepare(chunk.row.sequence, chunk.start) for chunk in chunks]
        counts = np.array([chunk.count for chunk in chunks])
        tokens = np.concatenate([np.array(chunk.row.sequence.ids[chunk.start : chunk.stop]) for chunk in chunks])
        first = np.cumsum(counts) - counts
        positions = np.arange(len(tokens)) + np.repeat([chunk.start for chunk in chunks] - first, counts)
        wanted = np.arange(len(tokens)) >= np.repeat(first + [chunk.count - chunk.kept for chunk in chunks], counts)
        ids = np.repeat([each.id for each in held], counts)
        logits = self._decoder.decode(tokens.astype(np.int32), positions.astype(np.int32), ids.astype(np.int32), wanted)
        for each, chunk in zip(held, chunks, strict=True):
            each.tokens = chunk.stop
        return logits
