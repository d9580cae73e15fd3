"""How torch's threads wait for each other, which has to be said before torch is imported."""

import os

SPIN = 5000  # looks at a flag before a thread sleeps; the library's own number is 60 times that


def spare_other_processes() -> None:
    """Let a thread that waits sleep soon. Two processes that spin on the same cores take them from each other: each of
    theirs steps was seen to take 100 times as long. A process alone loses nothing. A number that is set is kept."""
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))
