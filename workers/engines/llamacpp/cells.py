"""The cells of llama.cpp's key-value cache, kept in step with the scheduler's blocks.

llama.cpp has no blocks: a cell holds one token's keys and values at a position, for a set of sequence ids. Here the
blocks that the scheduler gives to a sequence become cells of one id. A block that another id holds already is shared by
adding the id to its cells, which copies nothing. When a sequence is freed its id **retires** and keeps the cells of its
shareable blocks, until the scheduler gives those blocks to other sequences. There are fewer ids than blocks: when they
run out, the id that retired first loses its cells, and `prepare` says from which token on a sequence must be computed
again. Pure accounting: `Memory` has the tensors.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Protocol

from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.sequence import Sequence


class Memory(Protocol):
    """Positions are tokens, `stop` excluded; None is the end."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let the id `target` have the cells of the id `source`, too."""

    def remove(self, id_: int, start: int, stop: int | None) -> None:
        """Take cells from an id; a cell that no id has is empty."""


class Held:
    """One id's cells: its `blocks` by index, of which `tokens` are computed, from the first on."""

    __slots__ = ("blocks", "id", "tokens")

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.blocks: dict[int, int] = {}
        self.tokens = 0


class Cells:
    def __init__(self, memory: Memory, ids: int) -> None:
        """`ids`: as many sequences can be held at a time, at least as many as run."""
        self._memory = memory
        self._unused = list(reversed(range(ids)))
        self._running: dict[Sequence, Held] = {}
        self._retired: OrderedDict[int, Held] = OrderedDict()  # by id, the first to retire first
        self._holders: dict[int, dict[int, tuple[Held, int]]] = {}  # of each block, by id; the block's index there

    def prepare(self, sequence: Sequence, computed: int) -> Held:
        """Return what the sequence holds before it is computed further. The scheduler believes that its first
        `computed` tokens are there; compute it from `tokens` on, which is less if the cells of some were lost."""
        held = self._running.get(sequence)
        if held is None:
            held = self._running[sequence] = Held(self._new_id())
            self._share(held, sequence, computed // BLOCK_SIZE)
        if len(held.blocks) < len(sequence.blocks):
            self._claim(held, range(len(held.blocks), len(sequence.blocks)), sequence)
        return held

    def free(self, sequence: Sequence) -> None:
        """Let go of a sequence; an unknown one is no error. What others may share of it stays for a while."""
        held = self._running.pop(sequence, None)
        if held is None:
            return
        kept = min(held.tokens // BLOCK_SIZE, len(sequence.digests))
        for index in [index for index in held.blocks if index >= kept]:
            self._let_go(held, index)
        if held.blocks:
            self._memory.remove(held.id, kept * BLOCK_SIZE, None)
            self._retired[held.id] = held
        else:
            self._release(held)

    def forget_retired(self) -> bool:
        """Empty all cells that no running sequence needs; False if there were none."""
        found = bool(self._retired)
        for held in list(self._retired.values()):
            self._lose(held)
        return found

    def _new_id(self) -> int:
        if not self._unused:
            self._lose(next(iter(self._retired.values())))
        return self._unused.pop()

    def _share(self, held: Held, sequence: Sequence, count: int) -> None:
        """Take the first `count` blocks from those that hold them, as far as there are any without a gap."""
        found = 0
        for source, run in _runs(self._sources(sequence, count)):
            self._memory.share(source, held.id, run.start * BLOCK_SIZE, run.stop * BLOCK_SIZE)
            found = run.stop
        held.tokens = found * BLOCK_SIZE
        for index in range(count):  # those that were lost are computed again, and held again
            self._hold(held, index, sequence.blocks[index])

    def _sources(self, sequence: Sequence, count: int) -> Iterator[tuple[int, int]]:
        """The id that holds each of the first blocks, and the block's index."""
        last = -1
        for index in range(count):
            holders = self._holders.get(sequence.blocks[index])
            if not holders:
                return
            last = last if last in holders else next(reversed(holders))
            yield last, index

    def _claim(self, held: Held, indexes: range, sequence: Sequence) -> None:
        """Take blocks that the scheduler has given to this sequence alone from the retired ids that still hold them."""
        stale: list[tuple[Held, int]] = []
        for index in indexes:
            block = sequence.blocks[index]
            for holder, at in list(self._holders.get(block, {}).values()):
                stale.append((holder, at))
                self._let_go(holder, at)
            self._hold(held, index, block)
        for id_, run in _runs(sorted((holder.id, at) for holder, at in stale)):
            self._memory.remove(id_, run.start * BLOCK_SIZE, run.stop * BLOCK_SIZE)
        for holder in {holder.id: holder for holder, _ in stale}.values():
            if not holder.blocks:
                del self._retired[holder.id]
                self._release(holder)

    def _hold(self, held: Held, index: int, block: int) -> None:
        held.blocks[index] = block
        self._holders.setdefault(block, {})[held.id] = (held, index)

    def _let_go(self, held: Held, index: int) -> None:
        block = held.blocks.pop(index)
        holders = self._holders[block]
        del holders[held.id]
        if not holders:
            del self._holders[block]

    def _lose(self, held: Held) -> None:
        """Empty the cells of a retired id, for it to be used again."""
        del self._retired[held.id]
        for index in list(held.blocks):
            self._let_go(held, index)
        self._release(held)

    def _release(self, held: Held) -> None:
        self._memory.remove(held.id, 0, None)
        self._unused.append(held.id)


def _runs(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, range]]:
    """Join (id, index) pairs whose ids are equal and whose indexes follow each other."""
    begun: tuple[int, range] | None = None
    for id_, index in pairs:
        if begun and begun[0] == id_ and begun[1].stop == index:
            begun = (id_, range(begun[1].start, index + 1))
            continue
        if begun:
            yield begun
        begun = (id_, range(index, index + 1))
    if begun:
        yield begun
