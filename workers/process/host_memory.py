"""Main memory: how much there is to take, and how to take it so that a step does not wait for the kernel."""

import ctypes
import mmap
import os
import threading
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch

from workers.process.single_thread import SingleThread

CGROUP = Path("/sys/fs/cgroup")  # version 2, which container engines use now


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30
MADV_POPULATE_WRITE = 23  # of Linux 5.14, not in Python's mmap yet
FETCHED = 2**22


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
    """On the CPU, in large pages where the kernel has them. They are fetched in the background: a step that met them
    first would wait for each."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    _background().submit(lambda: _fetch(memory))
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def wait_until_fetched() -> None:
    """For measurements: until then steps share the cores with what fetches."""
    _background().submit(lambda: None).result()


@cache
def _background() -> SingleThread:
    """With the lowest priority: it takes what time the cores have to spare."""
    thread = SingleThread("memory")
    thread.submit(lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19))
    return thread


def _fetch(memory: mmap.mmap) -> None:
    """Part by part, so that a step which needs a page meanwhile waits for one part at most."""
    libc, start = ctypes.CDLL(None), ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for begin in range(0, len(memory), FETCHED):
        count = min(FETCHED, len(memory) - begin)
        if libc.madvise(ctypes.c_void_p(start + begin), ctypes.c_size_t(count), MADV_POPULATE_WRITE):
            return  # an older kernel: pages come when they are met
