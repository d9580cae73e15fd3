"""Attention of single tokens on a CUDA device, which reads the blocks of the cache in place, each byte once for all
query heads that share it. Triton; any number type.

The tokens of a sequence are read in parts, side by side if few sequences would leave the device idle. Each part has its
own largest score, and the parts are combined at the end (flash decoding, Dao et al. 2023).
"""

import torch
import triton
import triton.language as tl

from workers.engines.native.kernels.step_layout import Scoring, Step

TILE = 64  # tokens scored at once
PROGRAMS = 512  # this many keep a large device busy
PARTS_MAX = 16
DOT_MIN = 16  # the fewest rows that a matrix unit takes


def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scoring: Scoring) -> torch.Tensor:
    """`step_layout.Reader`."""
    (rows, heads, size), (_, block_size, groups, value_size) = query.shape, values.shape
    parts = max(1, min(PARTS_MAX, PROGRAMS // (rows * groups)))
    share = heads // groups
    weight = query.new_empty(rows, heads, parts, dtype=torch.float32)
    mixed = query.new_empty(rows, heads, parts, value_size, dtype=torch.float32)
    _attend[(rows, groups, parts)](
        query.contiguous(),
        keys,
        values,
        step.tables,
        step.owners,
        step.positions,
        weight,
        mixed,
        scoring.scale,
        scoring.cap or 0.0,
        scoring.window or 0,
        step.tables.shape[1],
        SHARE=share,
        SHARE_TILE=max(DOT_MIN, triton.next_power_of_2(share)),
        SIZE=size,
        SIZE_TILE=max(DOT_MIN, triton.next_power_of_2(size)),
        VALUE_SIZE=value_size,
        VALUE_TILE=max(DOT_MIN, triton.next_power_of_2(value_size)),
        BLOCK=block_size,
        TILE=TILE,
        CAPPED=scoring.cap is not None,
    )
    return _together(weight, mixed, scoring).to(query.dtype)


def _together(weight: torch.Tensor, mixed: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Combine the parts. `weight` [rows, heads, parts] is the logarithm of the weight of each part's tokens; `mixed`
    [rows, heads, parts, size] is their mean value."""
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(1, -1, 1).expand(len(weight), -1, 1)
        share = torch.cat([weight, sinks], -1).softmax(-1)[..., :-1]
    else:
        share = weight.softmax(-1)
    return (mixed * share.unsqueeze(-1)).sum(2)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    tables,
    owners,
    positions,
    weight_out,
    mixed_out,
    scale,
    cap,
    window,
    width,
    SHARE: tl.constexpr,
    SHARE_TILE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Read one part of one token's past, for the query heads that share a kv head."""
    row, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    groups, parts = tl.num_programs(1), tl.num_programs(2)
    owner = tl.load(owners + row)
    end = tl.load(positions + row) + 1
    start = tl.where(window > 0, tl.maximum(end - window, 0), 0)
    count = tl.cdiv(tl.cdiv(end - start, parts), TILE) * TILE
    begin = start + part * count
    stop = tl.minimum(begin + count, end)

    head = tl.arange(0, SHARE_TILE)
    axis, value_axis = tl.arange(0, SIZE_TILE)[None, :], tl.arange(0, VALUE_TILE)[None, :]
    heads = (row * groups + group) * SHARE + head
    real = head < SHARE
    asked = tl.load(query + heads[:, None] * SIZE + axis, mask=real[:, None] & (axis < SIZE), other=0.0)
    best = tl.full([SHARE_TILE], float("-inf"), tl.float32)
    total = tl.zeros([SHARE_TILE], tl.float32)
    mixed = tl.zeros([SHARE_TILE, VALUE_TILE], tl.float32)
    for first in range(begin, stop, TILE):
        token = first + tl.arange(0, TILE)
        here = token < stop
        block = tl.load(tables + owner * width + token // BLOCK, mask=here, other=0).to(tl.int64)
        at = ((block * BLOCK + token % BLOCK) * groups + group)[:, None]
        key = tl.load(keys + at * SIZE + axis, mask=here[:, None] & (axis < SIZE), other=0.0)
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
        scores = tl.where(here[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        kept = tl.exp(best - higher)
        weights = tl.exp(scores - higher[:, None])
        value = tl.load(
            values + at * VALUE_SIZE + value_axis, mask=here[:, None] & (value_axis < VALUE_SIZE), other=0.0
        )
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        best = higher
    out = heads * parts + part
    some = tl.where(total > 0, total, 1.0)
    tl.store(weight_out + out, best + tl.log(some), mask=real)
    tl.store(
        mixed_out + out[:, None] * VALUE_SIZE + value_axis,
        mixed / some[:, None],
        mask=real[:, None] & (value_axis < VALUE_SIZE),
    )
