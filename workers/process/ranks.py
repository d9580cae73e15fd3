"""Ranks are processes that compute a model together; torchrun sets them in the environment."""

import os


def rank() -> int:
    """This process's rank; 0 is the worker."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def world() -> int:
    """The number of ranks; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
