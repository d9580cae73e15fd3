"""What torch raises, in the words of an engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.engine.base import EngineBroken, OutOfMemory

CPU_OUT_OF_MEMORY = "can't allocate memory"  # torch raises a plain RuntimeError for it


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(f"the device has no memory for this step: {error}") from error
    except torch.AcceleratorError as error:
        raise EngineBroken(f"the device has failed: {error}") from error
    except RuntimeError as error:
        if CPU_OUT_OF_MEMORY in str(error):
            raise OutOfMemory(f"there is no memory for this step: {error}") from error
        raise
