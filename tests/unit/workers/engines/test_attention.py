"""The kernel that reads blocks in place agrees with plain attention over the gathered blocks."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from workers.engines.native.kernels.attention import gather, kernels
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Chunk, Kernel, Scoring, Step
from workers.scheduling.engine_limits import BLOCK_SIZE, blocks_for

NUMBA = kernels(torch.device("cpu"), torch.float32)[0]


def make_step(cache: KVCache, lengths: list[int], blocks: int, *, news: list[int] | None = None) -> Step:
    """A step with the last token of each sequence, and blocks in any order; of each sequence that `news` counts more
    tokens of, a chunk of so many."""
    order = np.random.default_rng(1).permutation(blocks).astype(np.int32)
    tables = np.zeros((len(lengths), max(map(blocks_for, lengths))), np.int32)
    for row, length in enumerate(lengths):
        needed = blocks_for(length)
        tables[row, :needed], order = order[:needed], order[needed:]
    counts = news or [1] * len(lengths)
    ends = np.cumsum(counts).tolist()
    spans = [
        (end - count, end, row, lengths[row] - count) for row, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]
    decoding = sum(count == 1 for count in counts)
    positions = np.concatenate([np.arange(start, start + end - begin) for begin, end, _, start in spans]).astype(
        np.int32
    )
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    return Step(
        cache=cache,
        blocks=torch.from_numpy(tables[owners, positions // BLOCK_SIZE].astype(np.int64)),
        offsets=torch.from_numpy((positions % BLOCK_SIZE).astype(np.int64)),
        owners=torch.from_numpy(owners),
        positions=torch.from_numpy(positions),
        tables=torch.from_numpy(tables),
        decoding=decoding,
        chunks=[Chunk(*span) for span in spans[decoding:]],
        longest=max(lengths[:decoding], default=0),
        kernel=NUMBA,
        alone=False,
    )


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Several threads share the rows, even if a process of pytest has only one core."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(params=["numba", pytest.param("triton", marks=pytest.mark.slow)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel; without a device, Triton's is interpreted."""
    if request.param == "numba":
        return NUMBA
    if not os.environ.get("CI"):  # CI installs it, so it must be there
        pytest.importorskip("triton")
    from workers.engines.native.kernels import paged_triton

    return Kernel("triton", paged_triton.write, paged_triton.read, paged_triton.read_chunks)


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
    if kernel.name == "triton":  # an accelerator keeps the axes in the order of the shape
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


@pytest.mark.parametrize(
    ("news", "lengths"),
    [([40], [40]), ([1, 1, 37, 64], [5, 70, 300, 64]), ([1, 16, 2, 90, 3], [33, 400, 2, 90, 250])],
)
@pytest.mark.parametrize(
    ("heads", "groups", "size", "value_size"), [(4, 4, 16, 16), (8, 2, 24, 24), (6, 1, 64, 64), (4, 2, 24, 16)]
)
@pytest.mark.parametrize(
    ("window", "cap", "sinks"), [(None, None, False), (20, None, False), (None, 2.0, False), (33, 5.0, True)]
)
def test_chunks_see_what_is_before_them_and_nothing_else(
    kernel: Kernel,
    news: list[int],
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
    cache, tokens = KVCache(blocks=60), sum(news)
    step = make_step(cache, lengths, 60, news=news)
    keys, values = cache.layer(0, torch.randn(1, groups, 1, size), torch.randn(1, groups, 1, value_size))
    if kernel.name == "triton":
        keys, values = keys.contiguous(), values.contiguous()
    keys.copy_(torch.randn(keys.shape))
    values.copy_(torch.randn(values.shape))
    query, key, value = (
        torch.randn(count, tokens, width) for count, width in ((heads, size), (groups, size), (groups, value_size))
    )
    scoring = Scoring(size**-0.5, window, cap, torch.randn(heads) if sinks else None)

    kernel.write(key, value, keys, values, step)
    got = kernel.read_chunks(query, key, value, keys, values, step, scoring)

    wanted = [reference(query[:, row], keys, values, step, row, scoring) for row in range(step.decoding, tokens)]
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, row: int, scoring: Scoring
) -> torch.Tensor:
    """The attention of one token, by the definition: [heads, value size]."""
    end = int(step.positions[row]) + 1
    start = max(0, end - scoring.window) if scoring.window else 0
    blocks = step.tables[step.owners[row]].long()
    share = len(query) // keys.shape[2]
    near = [each[blocks].flatten(0, 1)[start:end].repeat_interleave(share, 1) for each in (keys, values)]
    scores = torch.einsum("hs,ths->ht", query.double(), near[0].double()) * scoring.scale
    if scoring.cap:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    if scoring.sinks is not None:
        scores = torch.cat([scores, scoring.sinks.double().unsqueeze(1)], 1)
    weights = scores.softmax(-1)[:, : end - start]
    return torch.einsum("ht,ths->hs", weights, near[1].double()).float()
