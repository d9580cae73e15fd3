"""The batched engine on a CUDA device answers as on the CPU, and reads the KV cache in place."""

import pytest
import torch

from shared.settings import load_settings
from tools.tiny_model.evaluate import answers, plain
from workers.engines.native.kernels.attention import gather, kernels
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Scoring, Step
from workers.engines.native.loader import load_engine
from workers.loading.model_spec import parse_specs
from workers.scheduling.engine_limits import BLOCK_SIZE

QUESTIONS = ["Hello!", "你好", "What is 7 + 5?", "Count from 1 to 20.", "Tell me a story about a fox.", "Spell house."]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_greedy_answers_on_the_gpu_equal_those_on_the_cpu() -> None:
    on_gpu = load_engine(parse_specs(["builtin"])[0], load_settings(device="cuda", dtype="float32"))
    on_cpu = load_engine(parse_specs(["builtin"])[0], load_settings(device="cpu"))

    requests = [plain(question) for question in QUESTIONS]
    assert answers(on_gpu, requests) == answers(on_cpu, requests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[1], [17, 300, 1, 4000], [900] * 64])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 8, 128), (14, 2, 64), (8, 8, 96)])
def test_the_kernel_computes_what_copies_compute(
    dtype: torch.dtype, lengths: list[int], heads: int, groups: int, size: int
) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    width = max(lengths) // BLOCK_SIZE + 1
    rows = len(lengths)
    cache = KVCache(blocks=rows * width)
    sample = torch.zeros(1, groups, 1, size, dtype=dtype, device=device)
    keys, values = cache.layer(0, sample, sample)
    keys.normal_()
    values.normal_()
    kernel, *_ = kernels(device, dtype)
    positions = torch.tensor(lengths, dtype=torch.int32, device=device) - 1
    owners = torch.arange(rows, dtype=torch.int32, device=device)
    tables = torch.randperm(rows * width, device=device).to(torch.int32).view(rows, width)
    step = Step(
        cache=cache,
        blocks=tables[owners.long(), positions.long() // BLOCK_SIZE].long(),
        offsets=positions.long() % BLOCK_SIZE,
        owners=owners,
        positions=positions,
        tables=tables,
        decoding=rows,
        chunks=[],
        longest=max(lengths),
        kernel=kernel,
        alone=False,
    )
    query = torch.randn(rows, heads, size, dtype=dtype, device=device)
    scoring = Scoring(size**-0.5, None, None, None)

    assert kernel.name == "triton"
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(
        kernel.read(query, keys, values, step, scoring),
        gather(query, keys, values, step, scoring),
        rtol=tolerance,
        atol=tolerance,
    )
