"""Main memory: how much there is to take, and how to take it so that a step does not wait for the kernel."""

import ctypes
import mmap
from pathlib import Path

import numpy as np
import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")  # version 2, which container engines use now


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30


def memory_available(cgroup: Path = CGROUP) -> int:
    """Bytes: what the machine has free, within the container's limit."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one; it would give large tensors back to the kernel and get them
    again page by page. Where the C library is another one, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def zeros(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """On the CPU; takes memory only where it is written, in large pages where the kernel has them."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
