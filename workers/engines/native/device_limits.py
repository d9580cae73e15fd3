"""A device limits the sizes of its steps, and the memory that is left for the KV cache when the largest one was
tried."""

import logging
from array import array
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.causal.sampler import choose
from workers.engines.native.torch_errors import translated
from workers.process.free_memory import memory_available
from workers.protocols import OutOfMemory
from workers.scheduling.engine_limits import blocks_for
from workers.scheduling.scheduler import Batch, Row
from workers.scheduling.sequence import SamplingParams, Sequence

log = logging.getLogger(__name__)
CPU_SHARE = 0.4  # of the free memory, for the cache: on a CPU other programs want some, too
RESERVE = 0.02  # of a device's memory, never taken: libraries allocate beside torch, and memory is fragmented
CUDA_SEQUENCES, CUDA_BATCH_TOKENS = 256, 8192
GIB = 2**30


def step_sizes(settings: Settings, device: torch.device) -> tuple[int, int]:
    """`sequences_max` and `batch_tokens_max`: those of the settings, or more on a CUDA device, which would idle at what
    keeps a CPU busy."""
    cuda = device.type == "cuda"
    sequences = settings.sequences_max if settings.has("sequences_max") or not cuda else CUDA_SEQUENCES
    tokens = settings.batch_tokens_max if settings.has("batch_tokens_max") or not cuda else CUDA_BATCH_TOKENS
    return sequences, tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of a device: all, those that nobody holds, and those that this process holds."""

    total: int
    free: int
    held: int

    def cache_room(self, step: int, utilization: float) -> int:
        """Bytes for the KV cache: this process's part of the memory, less what it holds and what its largest step
        takes, but no more than is free. Raises SettingsError if that is nothing."""
        room = min(int(self.total * utilization) - self.held, self.free - int(self.total * RESERVE)) - step
        if room > 0:
            return room
        total, free, held, step_gib = (f"{number / GIB:.1f}" for number in (self.total, self.free, self.held, step))
        raise SettingsError(
            f"PENSTOCK_GPU_MEMORY_UTILIZATION: {utilization} of the device's {total} GiB leaves nothing for the KV "
            f"cache: {held} GiB are held by this process, the largest step takes {step_gib}, and {free} are free"
        )


def cache_room(engine: BatchedEngine, settings: Settings) -> int:
    """Bytes that the KV cache may take. `engine` is for trials: its cache may be small. Raises SettingsError if there
    is no room."""
    device = engine.model.device
    step = step_bytes(engine, device) if device.type == "cuda" else 0
    if settings.kv_cache_gib:
        return int(settings.kv_cache_gib * GIB)
    if device.type != "cuda":
        return int(memory_available() * CPU_SHARE)
    free, total = torch.cuda.mem_get_info(device)
    memory = DeviceMemory(total=total, free=free, held=torch.cuda.memory_reserved(device))
    return memory.cache_room(step, settings.gpu_memory_utilization)


def step_bytes(engine: BatchedEngine, device: torch.device) -> int:
    """Bytes that the largest step takes beside the weights, by computing it. Kernels for its forms are compiled in
    passing. Raises SettingsError if it does not fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    try_largest_steps(engine)
    taken = torch.cuda.max_memory_reserved(device) - before
    torch.cuda.empty_cache()
    log.info("the largest step was tried", extra={"bytes": taken})
    return taken


@torch.inference_mode()
def try_largest_steps(engine: BatchedEngine) -> None:
    """Compute a step of as many tokens and sampling sequences as the limits allow, in which every sequence asks for all
    that sampling can cost, and one in which all of them decode. Raises SettingsError if the memory is too small."""
    limits = engine.limits
    sequences = min(limits.sequences_max, limits.batch_tokens_max)
    tokens = min(limits.batch_tokens_max // sequences, limits.context_length - 1)
    try:
        with translated():
            for batch in (
                _batch(engine, sequences, tokens, decoding=False),
                _batch(engine, sequences, 1, decoding=True),
            ):
                logits = engine.logits(batch)
                choose(logits.zero_(), [row.sequence for row in batch.sampling])
    except OutOfMemory as error:
        raise SettingsError(
            f"PENSTOCK_BATCH_TOKENS_MAX: a step of {limits.batch_tokens_max} tokens and {sequences} sequences does not "
            f"fit beside the weights; lower it, or PENSTOCK_SEQUENCES_MAX ({error})"
        ) from error


def _batch(engine: BatchedEngine, sequences: int, tokens: int, *, decoding: bool) -> Batch:
    """Each of the sequences computes so many tokens. They share the few blocks that there are, so what they compute
    means nothing."""
    costly = SamplingParams(
        seed=0,
        temperature=1,
        top_p=0.9,
        top_k=engine.limits.vocabulary,  # more than the candidates, so that all tokens are sorted
        min_p=0.001,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        logprobs=20,
    )
    start = 1 if decoding else 0
    rows = []
    for _ in range(sequences):
        sequence = Sequence(job_id="trial", choice=0, prompt=[0] * (start + tokens), sampling=costly)
        sequence.computed = start
        sequence.blocks = array("i", islice(cycle(range(engine.limits.blocks)), blocks_for(start + tokens)))
        rows.append(Row(sequence=sequence, start=start, count=tokens, decoding=decoding))
    return Batch(tuple(rows))
