"""Whether this process is one of several that compute a model together, as torchrun says in the environment."""

import os


def rank() -> int:
    """0 for the one that is the worker."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def world() -> int:
    """How many compute together."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
