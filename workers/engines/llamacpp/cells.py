"""The cells of llama.cpp's key-value cache, kept in step with the scheduler's blocks.

llama.cpp has no blocks: a cell holds one token's keys and values at a position, for a set of sequence ids. Here the
blocks that the scheduler gives to a sequence become cells of one id. A block that a running sequence holds already is
shared by adding the id to its cells, which copies nothing.

Attention reads past every cell in use, whoever's it is. So a sequence that is freed leaves no cell in use: what others
may share of it is **saved** to main memory, and restored when a sequence begins with it, until the scheduler gives its
blocks to other sequences. What was saved first is forgotten first. `prepare` says from which token on a sequence must
be computed again. Pure accounting: `Memory` has the tensors.
"""

from collections import Counter
from collections.abc import Sequence as Seq
from typing import Any, Protocol, TypeVar

from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.sequence import Sequence


class Memory(Protocol):
    """Positions are tokens, `stop` excluded; None is the end."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let the id `target` have the cells of the id `source`, too."""

    def remove(self, id_: int, start: int, stop: int | None) -> None:
        """Take cells from an id; a cell that no id has is empty."""

    def save(self, id_: int) -> Any:
        """Return a copy of what the cells of an id hold."""

    def restore(self, saved: Any, id_: int) -> bool:
        """Fill empty cells with what was saved, for an id that has none; False, without filling any, if there are too
        few."""


class Holder:
    """Holds `blocks`, by index, of which `tokens` are computed, from the first on. Whoever holds a block that is
    computed has everything before it, too."""

    __slots__ = ("blocks", "tokens")

    def __init__(self, tokens: int = 0) -> None:
        self.blocks: dict[int, int] = {}
        self.tokens = tokens


class Held(Holder):
    """The cells of an id, which a running sequence has."""

    __slots__ = ("id",)

    def __init__(self, id_: int) -> None:
        super().__init__()
        self.id = id_


class Saved(Holder):
    """The copy of cells, in main memory."""

    __slots__ = ("copy",)

    def __init__(self, tokens: int, copy: Any) -> None:
        super().__init__(tokens)
        self.copy = copy


Kind = TypeVar("Kind", bound=Holder)


class Cells:
    def __init__(self, memory: Memory, ids: int, *, saved_tokens_max: int) -> None:
        """`ids`: as many sequences can be held at a time, at least as many as run. At most `saved_tokens_max` tokens
        are in main memory; of sequences that begin alike each counts its own."""
        self._memory = memory
        self._saved_tokens_max = saved_tokens_max
        self._unused = list(reversed(range(ids)))
        self._running: dict[Sequence, Held] = {}
        self._saved: dict[Saved, None] = {}  # the first to be saved first
        self._holders: dict[int, dict[Holder, int]] = {}  # of each block, with the block's index there

    def prepare(self, sequence: Sequence, computed: int) -> Held:
        """Return what the sequence holds before it is computed further. The scheduler believes that its first
        `computed` tokens are there; compute it from `tokens` on, which is less if some were forgotten."""
        held = self._running.get(sequence)
        if held is None:
            held = self._running[sequence] = Held(self._unused.pop())
            self._share(held, sequence, computed // BLOCK_SIZE)
        for index in range(len(held.blocks), len(sequence.blocks)):
            self._claim(sequence.blocks[index])
            self._hold(held, index, sequence.blocks[index])
        return held

    def free(self, sequence: Sequence) -> None:
        """Let go of a sequence; an unknown one is no error. What others may share of it is saved."""
        held = self._running.pop(sequence, None)
        if held is None:
            return
        kept = min(held.tokens // BLOCK_SIZE, len(sequence.digests))
        blocks = [held.blocks[index] for index in range(kept)]
        if kept * BLOCK_SIZE <= self._saved_tokens_max and any(len(self._holders[block]) == 1 for block in blocks):
            self._memory.remove(held.id, kept * BLOCK_SIZE, None)
            self._save(Saved(kept * BLOCK_SIZE, self._memory.save(held.id)), blocks)
        self._let_go(held)
        self._memory.remove(held.id, 0, None)
        self._unused.append(held.id)

    def _save(self, saved: Saved, blocks: Seq[int]) -> None:
        """Keep a copy of these blocks, instead of those that hold fewer of the same."""
        for index, block in enumerate(blocks):
            self._hold(saved, index, block)
        alike = Counter(holder for block in blocks for holder in self._holders[block] if isinstance(holder, Saved))
        for other, count in alike.items():
            if other is not saved and count == len(other.blocks):
                self._forget(other)
        self._saved[saved] = None
        while sum(each.tokens for each in self._saved) > self._saved_tokens_max:
            self._forget(next(iter(self._saved)))

    def _share(self, held: Held, sequence: Sequence, count: int) -> None:
        """Take the first `count` blocks from those that hold them, as far as somebody does."""
        found, source = self._longest(Held, sequence.blocks[:count])
        restored, saved = self._longest(Saved, sequence.blocks[:count])
        if saved and restored > found and self._memory.restore(saved.copy, held.id):
            self._saved[saved] = self._saved.pop(saved)  # the last to be forgotten
            self._memory.remove(held.id, restored * BLOCK_SIZE, None)
            if found:
                self._memory.remove(held.id, 0, found * BLOCK_SIZE)
            held.tokens = restored * BLOCK_SIZE
        if source:
            self._memory.share(source.id, held.id, 0, found * BLOCK_SIZE)
            held.tokens = max(held.tokens, found * BLOCK_SIZE)
        for index in range(count):  # those that were forgotten are computed again, and held again
            self._hold(held, index, sequence.blocks[index])

    def _longest(self, kind: type[Kind], blocks: Seq[int]) -> tuple[int, Kind | None]:
        """Return who holds most of the blocks, of those of this kind, and how many of the first that are."""
        for index in reversed(range(len(blocks))):
            for holder in self._holders.get(blocks[index], ()):
                if isinstance(holder, kind) and holder.tokens > index * BLOCK_SIZE:
                    return index + 1, holder
        return 0, None

    def _claim(self, block: int) -> None:
        """Take a block that the scheduler has given to a sequence alone from copies that still hold it."""
        for holder, index in list(self._holders.get(block, {}).items()):
            assert isinstance(holder, Saved), "two running sequences have a block that the scheduler gave to one"
            self._drop(holder, index)
            if not holder.blocks:
                del self._saved[holder]

    def _hold(self, holder: Holder, index: int, block: int) -> None:
        holder.blocks[index] = block
        self._holders.setdefault(block, {})[holder] = index

    def _drop(self, holder: Holder, index: int) -> None:
        block = holder.blocks.pop(index)
        holders = self._holders[block]
        del holders[holder]
        if not holders:
            del self._holders[block]

    def _let_go(self, holder: Holder) -> None:
        for index in list(holder.blocks):
            self._drop(holder, index)

    def _forget(self, saved: Saved) -> None:
        self._let_go(saved)
        del self._saved[saved]
