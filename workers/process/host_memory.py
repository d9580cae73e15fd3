"""Main memory, allocated so that no step waits for the kernel."""

import ctypes
import mmap
import os
import threading
from functools import cache

import numpy as np
import torch

from workers.process.single_thread import SingleThread

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
KEPT = 2**30
MADV_POPULATE_WRITE = 23  # since Linux 5.14; Python's mmap lacks it
FETCHED = 2**22


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next step; by default it returns large tensors to the kernel and gets
    them again page by page. Does nothing with a C library other than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def zeros(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros on the CPU, in large pages if the kernel has them. A background thread touches the pages: a
    step that touched them first would wait for each."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    _background().submit(lambda: _fetch(memory))
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def wait_until_fetched() -> None:
    """Wait until all pages are touched, for measurements: until then steps share the cores with that thread."""
    _background().submit(lambda: None).result()


@cache
def _background() -> SingleThread:
    """Run with the lowest priority, in the time that the cores have to spare."""
    thread = SingleThread("memory")
    thread.submit(lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19))
    return thread


def _fetch(memory: mmap.mmap) -> None:
    """Touch the pages part by part, so that a step that needs one meanwhile waits for one part at most."""
    libc, start = ctypes.CDLL(None), ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for begin in range(0, len(memory), FETCHED):
        count = min(FETCHED, len(memory) - begin)
        if libc.madvise(ctypes.c_void_p(start + begin), ctypes.c_size_t(count), MADV_POPULATE_WRITE):
            return  # an older kernel: pages are fetched when they are touched
