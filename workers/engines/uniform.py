"""The random number behind a sampled token."""

import hashlib
import struct


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), from a keyed hash: no generator runs along, so nothing has to be resumed."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, choice, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)
