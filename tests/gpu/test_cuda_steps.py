"""What a step must not do on a CUDA device: wait, compile a kernel anew, or take more memory than was tried."""

from typing import Any

import pytest
import torch

from shared.domain.errors import SettingsError
from shared.settings import load_settings
from tests.models import sequence
from workers.engines.native.device_limits import GIB, try_largest_steps
from workers.engines.native.kernels.attention import gather_chunks, kernels, scatter
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Chunk, Scoring, Step
from workers.engines.native.loader import load_torch_engine
from workers.engines.offline import compute_all
from workers.loading.model_spec import BUILTIN
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.scheduler import Scheduler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def load(**given: Any) -> Any:
    return load_torch_engine(str(BUILTIN), load_settings(**({"device": "cuda", "kv_cache_gib": 0.5} | given)))


def test_greedy_answers_come_from_the_device_of_the_settings() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    second = load(device="cuda:1", dtype="float32")
    sequences = [sequence(list(range(5, 5 + length))) for length in (3, 40, 300)]

    compute_all(second, sequences, lambda each, _: each.output_length == 20)

    assert (second.kernel.name, str(second.model.device)) == ("triton", "cuda:1")
    on_cpu = [sequence(list(range(5, 5 + length))) for length in (3, 40, 300)]
    compute_all(load(device="cpu"), on_cpu, lambda each, _: each.output_length == 20)
    assert [each.output for each in sequences] == [each.output for each in on_cpu]


def test_the_model_computes_a_step_without_waiting() -> None:
    engine = load(batch_tokens_max=64)
    scheduler = Scheduler(engine.limits)
    for length in (3, 40, 300):
        scheduler.add(sequence(list(range(5, 5 + length))))

    for _ in range(12):
        batch = scheduler.next_batch()
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.logits(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scheduler.apply(batch, engine.step(batch))


def test_no_kernel_is_compiled_once_the_model_is_loaded() -> None:
    import triton

    engine = load(sequences_max=64, batch_tokens_max=256)
    compiled: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **known: compiled.append(known["fn"].name)
    try:
        for count, length in [(1, 1), (1, 17), (3, 15), (16, 16), (64, 33), (5, 700)]:
            asked = [sequence([5 + (7 * number + at) % 200 for at in range(length)]) for number in range(count)]
            compute_all(engine, asked, lambda each, _: each.output_length == 40)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None

    assert compiled == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 8, 128), (14, 2, 64), (8, 8, 96), (8, 4, 256)])
@pytest.mark.parametrize("window", [None, 100])
def test_the_kernel_computes_chunks_as_copies_do(
    dtype: torch.dtype, heads: int, groups: int, size: int, window: int | None
) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    starts, counts = [0, 500, 4000], [300, 17, 512]
    tokens, width = sum(counts), max(map(sum, zip(starts, counts, strict=True))) // BLOCK_SIZE + 1
    cache = KVCache(blocks=len(starts) * width)
    sample = torch.zeros(1, groups, 1, size, dtype=dtype, device=device)
    keys, values = cache.layer(0, sample, sample)
    keys.normal_()
    values.normal_()
    owners = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(counts)).to(device)
    spans = zip(starts, counts, strict=True)
    positions = torch.cat([torch.arange(start, start + count, dtype=torch.int32) for start, count in spans]).to(device)
    tables = torch.randperm(len(starts) * width, device=device).to(torch.int32).view(len(starts), width)
    begins = [sum(counts[:at]) for at in range(3)]
    triton, *_ = kernels(device, dtype)
    step = Step(
        cache=cache,
        blocks=tables[owners.long(), positions.long() // BLOCK_SIZE].long(),
        offsets=positions.long() % BLOCK_SIZE,
        owners=owners,
        positions=positions,
        tables=tables,
        decoding=0,
        chunks=[Chunk(begins[at], begins[at] + counts[at], at, starts[at]) for at in range(3)],
        longest=0,
        kernel=triton,
        alone=False,
    )
    query = torch.randn(heads, tokens, size, dtype=dtype, device=device)
    key, value = (torch.randn(groups, tokens, size, dtype=dtype, device=device) for _ in range(2))
    scoring = Scoring(size**-0.5, window, None, None)
    others = keys.clone(), values.clone()
    scatter(key, value, *others, step)

    triton.write(key, value, keys, values, step)

    assert torch.equal(keys, others[0])
    assert torch.equal(values, others[1])
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(
        triton.read_chunks(query, key, value, keys, values, step, scoring),
        gather_chunks(query, key, value, keys, values, step, scoring),
        rtol=tolerance,
        atol=tolerance,
    )


def test_a_worker_takes_its_part_of_the_memory_and_its_largest_step_fits_into_it() -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    engine = load(kv_cache_gib=0, gpu_memory_utilization=0.4, sequences_max=512, context_length=2048)
    torch.cuda.reset_peak_memory_stats()

    try_largest_steps(engine)

    assert torch.cuda.max_memory_reserved() <= 0.4 * total + GIB


def test_a_part_of_the_memory_that_the_largest_step_fills_is_refused() -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_GPU_MEMORY_UTILIZATION"):
        load(kv_cache_gib=0, gpu_memory_utilization=0.0001)


def test_a_device_has_larger_steps_than_a_cpu() -> None:
    limits = load().limits

    assert (limits.sequences_max, limits.batch_tokens_max) == (256, 8192)
