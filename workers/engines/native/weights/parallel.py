"""Tensor parallel under torchrun, by transformers' plan for the model: each rank holds a part of every layer. Rank 0 is
the worker; it sends each step to the other ranks, which compute it as well."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shared.domain.errors import SettingsError
from workers.engines.native.kernels.step_layout import Plan
from workers.process.ranks import world

IDLE = timedelta(days=3650)  # ranks wait in a collective while there is nothing to compute


def join(device: torch.device) -> torch.device:
    """Meet the other ranks; returns this rank's device."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=IDLE)
    return device


def least(number: int) -> int:
    """The least number of all ranks."""
    if world() == 1:
        return number
    numbers: list[int] = [0] * world()
    dist.all_gather_object(numbers, number)
    return min(numbers)


def require_one(param: str, value: object) -> None:
    """Raise SettingsError under torchrun if the value is set."""
    if world() > 1 and value:
        raise SettingsError(f"{param} is not supported under torchrun")


def tell(plan: Plan | None) -> None:
    """Send the next step from rank 0 to the others; None ends them."""
    dist.broadcast_object_list([plan], src=0, device=torch.device("cpu"))


def follow(engine: Any) -> None:
    """Compute the steps that rank 0 sends, until it sends None. Raises RuntimeError if rank 0 is gone."""
    while True:
        told: list[Plan | None] = [None]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[0] is None:
            return
        engine.compute(told[0])
