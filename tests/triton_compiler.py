"""Compile the Triton kernels for a CUDA device that is not here, as a worker asks for them; print how often it happened
and the shared memory they take: `python -m tests.triton_compiler CAPABILITY DTYPE HEAD_SIZE`. Nothing is launched."""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from workers.engines.native.kernels import paged_triton
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Chunk, Kernel, Scoring, Step
from workers.scheduling.engine_limits import BLOCK_SIZE

HEADS, GROUPS = 8, 2
KERNELS = [paged_triton._attend, paged_triton._combine, paged_triton._store]


class AbsentDevice:
    """A driver of a device of the given compute capability, enough of one to compile for it."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def attend(lengths: list[int], new: list[int], *, size: int, window: int | None, dtype: torch.dtype) -> None:
    """Write and read as one layer of a step does."""
    spans = [(sum(new[:at]), sum(new[: at + 1]), at, lengths[at] - new[at]) for at in range(len(new))]
    decoding, tokens = new.count(1), sum(new)
    width = max(lengths) // BLOCK_SIZE + 1
    blocks, offsets = torch.zeros(2 * tokens, dtype=torch.int64).split(tokens)  # as parts of one transfer
    owners, positions, tables = torch.zeros(2 * tokens + len(lengths) * width, dtype=torch.int32).split(
        [tokens, tokens, len(lengths) * width]
    )
    step = Step(
        cache=KVCache(blocks=1),
        blocks=blocks,
        offsets=offsets,
        owners=owners,
        positions=positions,
        tables=tables.view(len(lengths), width),
        decoding=decoding,
        chunks=[Chunk(*span) for span in spans[decoding:]],
        longest=max(lengths),
        kernel=Kernel("triton", paged_triton.write, paged_triton.read, paged_triton.read_chunks),
        alone=False,
    )
    cached = torch.zeros(1, BLOCK_SIZE, GROUPS, size, dtype=dtype)
    query, key = torch.zeros(HEADS, tokens, size, dtype=dtype), torch.zeros(GROUPS, tokens, size, dtype=dtype)
    scoring = Scoring(size**-0.5, window, None, None)
    step.kernel.write(key, key, cached, cached, step)
    if decoding:
        step.kernel.read(query[:, :decoding].transpose(0, 1), cached, cached, step, scoring)
    if step.chunks:
        step.kernel.read_chunks(query, key, key, cached, cached, step, scoring)


def without_launch(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, warmup, **named: run(*arguments, warmup=True, **named)


def main(capability: int, dtype: torch.dtype, size: int) -> None:
    driver.set_active(AbsentDevice(capability))
    compiled: list[str] = []
    for kernel in KERNELS:
        kernel.run = without_launch(kernel.run)
    triton.knobs.runtime.jit_post_compile_hook = lambda **known: compiled.append(known["fn"].name)
    rng = np.random.default_rng(1)
    for decoding in [1, 2, 15, 16, 17, 300]:
        for width in [1, 15, 16, 17, 100]:
            for window in [None, 1, 16, 17, 4096]:
                chunks = rng.integers(2, 60, rng.integers(0, 4)).tolist()
                new = [1] * decoding + chunks
                lengths = [width * BLOCK_SIZE + count - 1 for count in new]
                attend(lengths, new, size=size, window=window, dtype=dtype)
    caches = [kernel.device_caches[0][0] for kernel in KERNELS]
    shared = max(known.metadata.shared for cache in caches for known in cache.values())
    sys.stdout.write(json.dumps({"compiled": compiled, "shared": shared}))


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
