"""Python's garbage collector in a process that serves for long."""

import atexit
import gc

YOUNG_MAX = 10_000  # new objects before the collector looks; 700 by default, which one step of 64 sequences makes


def spare_what_stays() -> None:
    """Have the collector pass over everything that exists now, and look at new objects less often. Called once, when a
    process has made what it keeps to its end, where libraries look whether it is all collected."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.set_threshold(YOUNG_MAX)
