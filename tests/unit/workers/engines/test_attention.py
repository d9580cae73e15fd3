"""The kernel that reads blocks in place agrees with plain attention over the gathered blocks."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from workers.engines.native.kernels.attention import gather, kernels, scatter
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Kernel, Scoring, Step
from workers.scheduling.engine_limits import BLOCK_SIZE, blocks_for

NUMBA = kernels(torch.device("cpu"), torch.float32)[0]


def make_step(cache: KVCache, lengths: list[int], blocks: int) -> Step:
    """Make a step with one decoding token at the end of each sequence, and blocks in any order."""
    order = np.random.default_rng(1).permutation(blocks).astype(np.int32)
    tables = np.zeros((len(lengths), max(map(blocks_for, lengths))), np.int32)
    for row, length in enumerate(lengths):
        needed = blocks_for(length)
        tables[row, :needed], order = order[:needed], order[needed:]
    positions = np.array(lengths, np.int32) - 1
    owners = np.arange(len(lengths), dtype=np.int32)
    return Step(
        cache=cache,
        blocks=torch.from_numpy(tables[owners, positions // BLOCK_SIZE].astype(np.int64)),
        offsets=torch.from_numpy((positions % BLOCK_SIZE).astype(np.int64)),
        owners=torch.from_numpy(owners),
        positions=torch.from_numpy(positions),
        tables=torch.from_numpy(tables),
        decoding=len(lengths),
        chunks=[],
        kernel=NUMBA,
        alone=False,
    )


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Let several threads share the rows, even if each process of pytest has one core."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(params=["numba", pytest.param("triton", marks=pytest.mark.slow)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Return the kernel; without a device, Triton's is interpreted."""
    if request.param == "numba":
        return NUMBA
    if not os.environ.get("CI"):  # CI must have Triton installed
        pytest.importorskip("triton")
    from workers.engines.native.kernels import paged_triton

    return Kernel("triton", scatter, paged_triton.read)


@pytest.mark.parametrize("lengths", [[1], [16], [17, 300, 1, 32, 64], [5] * 40])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "value_size"), [(4, 4, 16, 16), (8, 2, 24, 24), (6, 1, 64, 64), (4, 2, 24, 16)]
)
@pytest.mark.parametrize(
    ("window", "cap", "sinks"), [(None, None, False), (20, None, False), (None, 2.0, False), (33, 5.0, True)]
)
def test_it_computes_what_plain_attention_computes(
    kernel: Kernel,
    lengths: list[int],
    heads: int,
    groups: int,
    size: int,
    value_size: int,
    window: int | None,
    cap: float | None,
    sinks: bool,
) -> None:
    torch.manual_seed(0)
    cache, rows = KVCache(blocks=60), len(lengths)
    step = make_step(cache, lengths, 60)
    keys, values = cache.layer(0, torch.randn(1, groups, 1, size), torch.randn(1, groups, 1, value_size))
    if kernel.name == "triton":  # an accelerator's tensors keep their shape
        keys, values = keys.contiguous(), values.contiguous()
    keys.copy_(torch.randn(keys.shape))
    values.copy_(torch.randn(values.shape))
    query, key, value = (
        torch.randn(count, rows, width) for count, width in ((heads, size), (groups, size), (groups, value_size))
    )
    scoring = Scoring(size**-0.5, window, cap, torch.randn(heads) if sinks else None)

    kernel.write(key, value, keys, values, step)
    got = kernel.read(query.transpose(0, 1), keys, values, step, scoring)

    assert torch.equal(keys[step.blocks, step.offsets], key.transpose(0, 1))
    assert torch.equal(values[step.blocks, step.offsets], value.transpose(0, 1))
    torch.testing.assert_close(got, gather(query.transpose(0, 1), keys, values, step, scoring), rtol=1e-4, atol=1e-5)


def test_a_token_gets_the_same_bits_whatever_shares_its_step() -> None:
    torch.manual_seed(0)
    cache, lengths = KVCache(blocks=60), [17, 300, 1, 32, 64]
    keys, values = cache.layer(0, torch.randn(1, 2, 1, 32), torch.randn(1, 2, 1, 32))
    keys.copy_(torch.randn(keys.shape))
    values.copy_(torch.randn(values.shape))
    query, scoring = torch.randn(5, 4, 32), Scoring(0.2, None, None, None)
    step = make_step(cache, lengths, 60)
    together = NUMBA.read(query, keys, values, step, scoring)

    for row in range(5):
        step.owners, step.positions = (torch.tensor([n], dtype=torch.int32) for n in (row, lengths[row] - 1))
        assert torch.equal(NUMBA.read(query[row : row + 1], keys, values, step, scoring)[0], together[row])
