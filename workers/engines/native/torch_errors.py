"""Errors of torch, translated into those of an engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.domain.errors import EngineError
from workers.protocols import EngineBroken, OutOfMemory

CPU_OUT_OF_MEMORY = "can't allocate memory"  # torch raises a plain RuntimeError for it
DEVICE_FAILED = "CUDA error"
# torch before 2.8 raises a plain RuntimeError for a device that has failed.
AcceleratorError: type[Exception] | None = getattr(torch, "AcceleratorError", None)


@contextmanager
def translated(*, together: bool = False) -> Iterator[None]:
    """A context that translates errors. With `together`, other ranks compute the same step; an error leaves them in an
    unknown state, so it is EngineBroken."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        known = EngineBroken(f"the ranks have lost each other: {error}") if together else _known(error)
        if known is None:
            raise
        raise known from error


def _known(error: Exception) -> EngineError | None:
    match error:
        case torch.OutOfMemoryError():
            torch.cuda.empty_cache()
            return OutOfMemory(f"the device has no memory for this step: {error}")
        case RuntimeError() if DEVICE_FAILED in str(error) or (
            AcceleratorError and isinstance(error, AcceleratorError)
        ):
            return EngineBroken(f"the device has failed: {error}")
        case RuntimeError() if CPU_OUT_OF_MEMORY in str(error):
            return OutOfMemory(f"there is no memory for this step: {error}")
    return None
