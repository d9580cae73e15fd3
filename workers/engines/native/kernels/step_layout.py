"""A step's batch as its layers see it: all tokens in one row, and where each one's keys and values lie."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from workers.engines.native.kernels.kv_cache import KVCache

FEW, MULTIPLE = 32, 16


def bucket_size(rows: int, device: torch.device) -> int:
    """How many rows to multiply when `rows` are wanted. On a CPU oneDNN compiles and keeps half a megabyte of code for
    each number of rows and shape of weights that it meets."""
    return rows if rows <= FEW or device.type != "cpu" else -(-rows // MULTIPLE) * MULTIPLE


class Chunk(NamedTuple):
    """Rows `begin` to `end` of the packed step are tokens of sequence `owner`, from position `start` on."""

    begin: int
    end: int
    owner: int
    start: int


class Scoring(NamedTuple):
    """How a layer scores: `window`, if any, counts the tokens that are seen, the newest included; `cap` bounds scores
    (Gemma 2); `sinks` [heads] are scores of a token that takes weight and gives nothing (gpt-oss)."""

    scale: float
    window: int | None
    cap: float | None
    sinks: torch.Tensor | None

    @property
    def plain(self) -> bool:
        """Nothing but the order of tokens hides one from another, or changes a score."""
        return not self.window and self.cap is None and self.sinks is None


Numbers = np.ndarray[Any, Any]


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
    """The first `decoding` tokens of the packed row stand for themselves; chunks follow, then the last token again.

    `blocks`, `offsets`: int64 [tokens], where keys and values go. `owners`, `positions`: int32 [tokens]. `tables`:
    int32 [sequences, blocks]. `kernel` writes and reads the cache. `alone`: every token is computed like a decoding
    one, so that sums run in the same order whatever shares the step.
    """

    cache: KVCache
    blocks: torch.Tensor
    offsets: torch.Tensor
    owners: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor
    decoding: int
    chunks: list[Chunk]
    kernel: "Kernel"
    alone: bool

    @property
    def singles(self) -> int:
        """How many tokens, from the first on, are computed each by itself."""
        return len(self.blocks) if self.alone else self.decoding


@dataclass(frozen=True, slots=True)
class Packed:
    """Passages in one row that know nothing of each other and are not kept: rows `begin` to `end` are one."""

    bounds: list[tuple[int, int]]


# key and value [kv heads, tokens, size], into keys and values [blocks, block size, kv heads, size]
Writer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Step], None]
# query [tokens, heads, size], keys and values [blocks, block size, kv heads, size] -> [tokens, heads, value size]
Reader = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Step, Scoring], torch.Tensor]


class Kernel(NamedTuple):
    """How a device reaches the cache; `read` is for the step's single tokens."""

    name: str
    write: Writer
    read: Reader
