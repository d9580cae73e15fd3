"""The layout of a step for its layers: all tokens in one row, and the places of their keys and values."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.transfer import Numbers, uploaded

FEW, MULTIPLE = 32, 16


def bucket_size(rows: int, device: torch.device) -> int:
    """The number of rows to multiply when `rows` are needed. For each number of rows and shape of weights oneDNN
    compiles half a megabyte of code on a CPU, and keeps it."""
    return rows if rows <= FEW or device.type != "cpu" else -(-rows // MULTIPLE) * MULTIPLE


class Chunk(NamedTuple):
    """Rows `begin` to `end` of the packed step are tokens of sequence `owner`, from position `start` on."""

    begin: int
    end: int
    owner: int
    start: int


class Scoring(NamedTuple):
    """The way a layer scores. `window`, if any, counts the visible tokens, including the newest; `cap` bounds scores
    (Gemma 2); `sinks` [heads] are scores of a token that takes weight and gives nothing (gpt-oss)."""

    scale: float
    window: int | None
    cap: float | None
    sinks: torch.Tensor | None

    @property
    def plain(self) -> bool:
        """True if scores are neither capped nor windowed, and there are no sinks."""
        return not self.window and self.cap is None and self.sinks is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A step in numbers alone, which another process can compute as well.

    `ids` int64 [tokens] in one row; `keep` int64, the rows whose logits are wanted; `owners`, `positions`, `tables`,
    `decoding` and `chunks` as in `Step`; `adapters`, one for each sequence, and `counts` of its rows.
    """

    ids: Numbers
    keep: Numbers
    owners: Numbers
    positions: Numbers
    tables: Numbers
    decoding: int
    chunks: list[Chunk]
    adapters: list[str]
    counts: list[int]


@dataclass(slots=True, kw_only=True)
class Step:
    """The first `decoding` tokens of the packed row are single tokens; chunks follow, then copies of the last token.

    `blocks`, `offsets`: int64 [tokens], the places of keys and values. `owners`, `positions`: int32 [tokens]. `tables`:
    int32 [sequences, blocks]. `longest` is the most tokens that a single token sees. `kernel` writes and reads the
    cache. `alone`: every token is computed like a decoding one, so that sums run in the same order whatever shares the
    step. `made` keeps what layers derive from the step, so that it is derived once.
    """

    cache: KVCache
    blocks: torch.Tensor
    offsets: torch.Tensor
    owners: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor
    decoding: int
    chunks: list[Chunk]
    longest: int
    kernel: "Kernel"
    alone: bool
    made: dict[Any, torch.Tensor] = field(default_factory=dict)

    @property
    def singles(self) -> int:
        """The number of tokens, from the first on, that are computed each by itself."""
        return len(self.blocks) if self.alone else self.decoding

    def tiles(self, rows: int) -> torch.Tensor:
        """The chunks, cut into tiles of at most `rows` tokens: int32 [tiles, 2], the first token of each and their
        number."""
        if rows not in self.made:
            cut = [(at, min(rows, end - at)) for begin, end, _, _ in self.chunks for at in range(begin, end, rows)]
            self.made[rows] = uploaded(np.array(cut, dtype=np.int32), self.blocks.device)
        return self.made[rows]


@dataclass(frozen=True, slots=True)
class Packed:
    """Passages in one row that do not see each other and are not cached: rows `begin` to `end` are one passage."""

    bounds: list[tuple[int, int]]


# key and value [kv heads, tokens, size], into keys and values [blocks, block size, kv heads, size]
Writer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Step], None]
# query [tokens, heads, size], keys and values [blocks, block size, kv heads, size] -> [tokens, heads, value size]
Reader = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Step, Scoring], torch.Tensor]
# query [heads, tokens, size], key and value [kv heads, tokens, size] of the whole step, keys and values as above
# -> [tokens of the chunks, heads, value size]
ChunkReader = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Step, Scoring], torch.Tensor
]


class Kernel(NamedTuple):
    """A device's way to write and read the cache: `read` is for the step's single tokens, `read_chunks` for its chunks,
    whose keys and values are written already."""

    name: str
    write: Writer
    read: Reader
    read_chunks: ChunkReader
