"""Transfers of small arrays to the device, for which nobody waits."""

from typing import Any

import numpy as np
import torch

Numbers = np.ndarray[Any, Any]


def uploaded(numbers: Numbers, device: torch.device) -> torch.Tensor:
    """The numbers on the device; on a CPU they share the array's memory. A CUDA device copies them by itself: from
    memory that can be paged out, the host would have to wait until it has."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def uploaded_together(arrays: list[Numbers], device: torch.device) -> list[torch.Tensor]:
    """The same for several one-dimensional arrays of one number type, in one transfer."""
    if device.type == "cpu":
        return [torch.from_numpy(numbers) for numbers in arrays]
    return list(uploaded(np.concatenate(arrays), device).split([len(numbers) for numbers in arrays]))
