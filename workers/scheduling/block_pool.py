"""Which blocks of the key-value cache hold what. Pure accounting: the tensors are the engine's.

A block holds the keys and values of BLOCK_SIZE tokens in a row. A full one is known by its digest, a SHA-256 over its
tokens and the digest of the block before it, so that sequences which begin alike share their blocks. A block that
nobody uses any more keeps its content until its room is needed; the one unused for longest goes first.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Seq


def digest(before: bytes, tokens: bytes) -> bytes:
    """`before`: the digest of the block before; for the first one, the salt that keeps tenants apart."""
    return hashlib.sha256(before + tokens).digest()


class BlockPool:
    def __init__(self, count: int) -> None:
        self.count = count
        self._never_used = iter(range(count))
        self._untouched = count
        self._blank: list[int] = []  # used before, content forgotten
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody's, but known; least recently used first
        self._users: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free_count(self) -> int:
        """Blocks that can be taken, those that keep something for later among them."""
        return self._untouched + len(self._blank) + len(self._idle)

    def knows(self, name: bytes) -> bool:
        return name in self._block_of

    def allocate(self, digests: Seq[bytes], count: int, *, spare: int = 0) -> tuple[list[int], int] | None:
        """`count` blocks for a new sequence and how many of them, its first ones, hold what `digests` name already.
        None, and nothing taken, when that would leave less than `spare` free."""
        shared = self._known(digests[:count])
        fresh = count - len(shared)
        if fresh + sum(block in self._idle for block in shared) + spare > self.free_count:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1
        return [*shared, *(self._pop_free() for _ in range(fresh))], len(shared)

    def allocate_one(self) -> int | None:
        """One more block for a running sequence, or None."""
        return self._pop_free() if self.free_count else None

    def publish(self, block: int, name: bytes) -> None:
        """The block is full and computed; whoever needs the same may share it. The first of equal blocks is kept."""
        if name not in self._block_of and block not in self._digest_of:
            self._block_of[name] = block
            self._digest_of[block] = name

    def free(self, blocks: Seq[int]) -> None:
        """The sequence needs them no more. Its last block is the first to be forgotten."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._blank.append(block)

    def _known(self, digests: Seq[bytes]) -> list[int]:
        found = []
        for name in digests:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def _pop_free(self) -> int:
        if self._blank:
            block = self._blank.pop()
        elif self._untouched:
            block = next(self._never_used)
            self._untouched -= 1
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
        self._users[block] = 1
        return block
