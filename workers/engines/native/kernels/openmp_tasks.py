"""Compiled loops run on the threads that torch has already. A thread pool of their own would compete with torch's for
the cores, since both wait for work by spinning.

A task is a C function of one pointer, to int64 numbers: the next piece of work, the number of pieces, then the task's
own numbers, addresses of arrays among them. Every thread of the team runs it, and takes pieces until none is left.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

NEXT, PIECES, FIRST = 0, 1, 2
TASK = numba.void(numba.types.CPointer(numba.int64))
INT64 = ir.IntType(64)


def run(task: Any, pieces: int, numbers: list[int]) -> None:
    """`task`: a numba cfunc of signature TASK. Returns when all pieces are done."""
    data = np.array([0, pieces, *numbers], dtype=np.int64)
    openmp = _openmp()
    threads = min(torch.get_num_threads(), pieces)
    if openmp is None or threads == 1:
        task.ctypes(data.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
    else:
        openmp.GOMP_parallel(ctypes.c_void_p(task.address), data.ctypes.data_as(ctypes.c_void_p), threads, 0)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch brought; without it tasks run on the calling thread alone."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    ours = [path for path in paths if Path(torch.__file__).parent.parent.resolve() in Path(path).resolve().parents]
    return ctypes.CDLL(ours[0]) if ours else None


@intrinsic  # type: ignore[untyped-decorator]
def next_piece(typing: Any, data: Any) -> Any:
    """Add 1 to the first number, atomically; return its value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(INT64, 1), "monotonic")

    return types.int64(data), generate


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@numba.njit  # type: ignore[untyped-decorator]
def floats(address: int, shape: Any) -> Any:
    """The float32 array in C order at an address."""
    return numba.carray(_pointer(address), shape, np.float32)


@numba.njit  # type: ignore[untyped-decorator]
def ints(address: int, shape: Any) -> Any:
    return numba.carray(_pointer(address), shape, np.int32)
