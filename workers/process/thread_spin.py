"""Spinning of torch's threads while they wait for each other, which must be set before torch is imported."""

import os

SPIN = 5000  # looks at a flag before a thread sleeps; the library's default is 60 times that


def spare_other_processes() -> None:
    """Let a waiting thread sleep soon. Two processes that spin on the same cores take them from each other: their steps
    were seen to take 100 times as long. A process alone loses nothing. A value that is set already is kept."""
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))
