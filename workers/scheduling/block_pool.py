"""The block pool knows what each block of the KV cache holds. Pure accounting: the engine has the tensors.

A block holds the keys and values of BLOCK_SIZE consecutive tokens. A full one is known by its digest, a SHA-256 over
the digest of the block before it and its tokens, so that sequences which begin alike share their blocks. A block that
no sequence uses keeps its content until its room is needed; the least recently used one is evicted first.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Seq


def digest(before: bytes, tokens: bytes) -> bytes:
    """`before`: the digest of the block before; for the first one, the salt that keeps tenants apart."""
    return hashlib.sha256(before + tokens).digest()


class BlockPool:
    def __init__(self, count: int, *, idle_max: int | None = None) -> None:
        """At most `idle_max` unused blocks keep their content; None: all."""
        self.count = count
        self._idle_max = count if idle_max is None else idle_max
        self._never_used = iter(range(count))
        self._untouched = count
        self._blank: list[int] = []  # used before, but their content is forgotten
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # unused, but their content is known; least recently used first
        self._users: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free_count(self) -> int:
        """The number of blocks that can be allocated, including those that keep content for later."""
        return self._untouched + len(self._blank) + len(self._idle)

    def knows(self, name: bytes) -> bool:
        return name in self._block_of

    def allocate(self, digests: Seq[bytes], count: int, *, spare: int = 0) -> tuple[list[int], int] | None:
        """Allocate `count` blocks for a new sequence. Returns them, and how many of the first already hold the content
        that `digests` name; None, without allocating any, if fewer than `spare` would stay free."""
        shared = self._known(digests[:count])
        fresh = count - len(shared)
        if fresh + sum(block in self._idle for block in shared) + spare > self.free_count:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1
        return [*shared, *(self._pop_free() for _ in range(fresh))], len(shared)

    def allocate_one(self) -> int | None:
        """Allocate one more block for a running sequence; None if none is free."""
        return self._pop_free() if self.free_count else None

    def publish(self, block: int, name: bytes) -> None:
        """Share a block that is full and computed under its digest. The first of equal blocks is kept."""
        if name not in self._block_of and block not in self._digest_of:
            self._block_of[name] = block
            self._digest_of[block] = name

    def free(self, blocks: Seq[int]) -> None:
        """Give back a sequence's blocks. Its last one is evicted first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._blank.append(block)
        while len(self._idle) > self._idle_max:
            self._blank.append(self._evict())

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
            block = self._evict()
        self._users[block] = 1
        return block

    def _evict(self) -> int:
        """Forget the content of the unused block that was used least recently."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        return block
