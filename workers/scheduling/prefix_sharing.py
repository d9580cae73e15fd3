"""Blocks shared by prompts that begin alike: what they are called, who computes one now, and who waits for it. Pure."""

from collections.abc import Sequence as Seq

from workers.scheduling.block_pool import BlockPool, digest
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.sequence import Sequence


class PrefixSharing:
    """A block of a prompt is computed once: the first sequence to start computes it, later ones that need it wait until
    it is published, and wait no longer when the one that computes it stops before that."""

    def __init__(self, pool: BlockPool, *, enabled: bool) -> None:
        self._pool = pool
        self._enabled = enabled
        self._computing: dict[bytes, Sequence] = {}
        self._waiting: dict[bytes, list[Sequence]] = {}  # by the last block that they wait for

    @property
    def idle(self) -> bool:
        """True if no block is being computed, and no sequence waits."""
        return not self._computing and not self._waiting

    def shareable(self, sequence: Sequence) -> list[bytes]:
        """Digests of its full blocks, except the block that its last token fills: that one is always computed."""
        return self._digests(sequence, (sequence.length - 1) // BLOCK_SIZE)

    def wait(self, sequence: Sequence) -> bool:
        """Make it wait if another sequence is computing a block that it needs; False if none is. A sequence that waits
        comes back from `publish` or `stop`."""
        last = None
        for name in self.shareable(sequence):
            if name in self._computing:
                last = name
            elif last is not None or not self._pool.knows(name):
                break
        if last is not None:
            self._waiting.setdefault(last, []).append(sequence)
        return last is not None

    def start(self, sequence: Sequence, digests: Seq[bytes]) -> None:
        """Record that it computes these blocks now, except those that another sequence computes already."""
        for name in digests:
            self._computing.setdefault(name, sequence)

    def publish(self, sequence: Sequence, start: int) -> Seq[Sequence]:
        """Share the blocks that it has filled since token `start`; return the sequences that waited for them."""
        first, full = start // BLOCK_SIZE, sequence.computed // BLOCK_SIZE
        if first == full or not self._enabled:
            return ()
        released: list[Sequence] = []
        for index, name in enumerate(self._digests(sequence, full)[first:], start=first):
            self._pool.publish(sequence.blocks[index], name)
            released += self._release(name, sequence)
        return released

    def stop(self, sequence: Sequence) -> list[Sequence]:
        """Record that it computes nothing any more; return the sequences that waited for it."""
        return [waiting for name in sequence.digests for waiting in self._release(name, sequence)]

    def _release(self, name: bytes, sequence: Sequence) -> Seq[Sequence]:
        if self._computing.get(name) is not sequence:
            return ()
        del self._computing[name]
        return self._waiting.pop(name, ())

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Digests of its first `count` blocks. None for a scored prompt, which needs all its logits."""
        if not self._enabled or sequence.sampling.prompt_logprobs is not None:
            return []
        known = sequence.digests
        while len(known) < count:
            known.append(digest(known[-1] if known else sequence.salt, sequence.block(len(known))))
        return known[:count]
