"""Attention on a CUDA device that reads and writes the blocks of the cache in place. Triton; any number type.

One kernel serves single tokens and chunks of prompts. Each of its programs scores a few tokens of one sequence, for all
query heads that share a kv head, so that a key is read once for all of them, and keeps no scores beyond one tile.

The past of single tokens is read in parts, side by side if few sequences would leave the device idle. Each part has its
own largest score, and the parts are combined at the end (flash decoding, Dao et al. 2023).
"""

from typing import Any

import torch
import triton
import triton.language as tl

from shared.domain.errors import EngineError
from workers.engines.native.kernels.step_layout import Scoring, Step

TILE_BYTES = 16_384  # of keys or values that are scored at once: larger tiles do not fit small devices
TILES = 16, 64  # fewest and most tokens scored at once
QUERY_BYTES = 2 * TILE_BYTES
CHUNK_ROWS = 64  # queries, tokens times heads, of one program for a chunk; fewer if they are wide
PROGRAMS = 512  # this many keep a large device busy
PARTS_MAX = 16
DOT_MIN = 16  # the fewest rows that a matrix unit takes
COPIED = 1024  # numbers copied by one program
COMPILING = {"num_stages": 2, "enable_fp_fusion": True}  # said, since releases of Triton have different defaults


def write(key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step) -> None:
    """`step_layout.Writer`. Raises EngineError for a layer on another device than the step."""
    if keys.device != step.blocks.device:
        raise EngineError(f"a layer is on {keys.device}, and the step on {step.blocks.device}")
    key, value = key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous()
    widths = [each.shape[1] * each.shape[2] for each in (key, value)]
    grid = (len(key), triton.cdiv(max(widths), COPIED))
    numbers = {"KEY": widths[0], "VALUE": widths[1], "BLOCK": keys.shape[1], "COPIED": COPIED}
    _store[grid](key, value, keys, values, step.blocks, step.offsets, **numbers, **COMPILING)


def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scoring: Scoring) -> torch.Tensor:
    """`step_layout.Reader`."""
    (rows, heads, _), (groups, value_size) = query.shape, values.shape[2:]
    parts = max(1, min(PARTS_MAX, PROGRAMS // (rows * groups)))
    out = query.new_empty(rows, heads, value_size)
    weight = query.new_empty(rows, heads, parts, dtype=torch.float32)
    mixed = out if parts == 1 else query.new_empty(rows, heads, parts, value_size, dtype=torch.float32)
    tiling = {"ROWS": 1, "SHARE_TILE": max(DOT_MIN, triton.next_power_of_2(heads // groups)), "TILED": False}
    _launch((rows, groups, parts), query, keys, values, step, scoring, step.owners, weight, mixed, tiling)
    if parts > 1:
        numbers = {"SIZE": value_size, "TILE": triton.next_power_of_2(value_size), "PARTS": PARTS_MAX}
        _combine[(rows * heads,)](weight, mixed, out, parts, **numbers, **COMPILING)
    return out


def read_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scoring: Scoring,
) -> torch.Tensor:
    """`step_layout.ChunkReader`, for all chunks together."""
    query = query.transpose(0, 1)
    (tokens, heads, size), (groups, value_size) = query.shape, values.shape[2:]
    share_tile = triton.next_power_of_2(heads // groups)
    rows = max(DOT_MIN, min(CHUNK_ROWS, QUERY_BYTES // (triton.next_power_of_2(size) * query.element_size())))
    rows = max(1, rows // share_tile)
    tiles = step.tiles(rows)
    out = query.new_empty(tokens, heads, value_size)
    tiling = {"ROWS": rows, "SHARE_TILE": share_tile, "TILED": True}
    _launch((len(tiles), groups, 1), query, keys, values, step, scoring, tiles, out, out, tiling)
    return out[step.decoding : step.chunks[-1].end]


def _launch(
    grid: tuple[int, int, int],
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scoring: Scoring,
    tiles: torch.Tensor,
    weight: torch.Tensor,
    mixed: torch.Tensor,
    tiling: dict[str, Any],
) -> None:
    size, value_size = query.shape[2], values.shape[3]
    sinks = query if scoring.sinks is None else scoring.sinks.float()
    _attend[grid](
        query.contiguous(),
        keys,
        values,
        step.tables,
        step.owners,
        step.positions,
        tiles,
        sinks,
        weight,
        mixed,
        scoring.scale,
        scoring.cap or 0.0,
        scoring.window or 0,
        step.tables.shape[1],
        **tiling,
        WHOLE=grid[2] == 1,
        SINKS=scoring.sinks is not None,
        CAPPED=scoring.cap is not None,
        SHARE=query.shape[1] // values.shape[2],
        SIZE=size,
        SIZE_TILE=max(DOT_MIN, triton.next_power_of_2(size)),
        VALUE_SIZE=value_size,
        VALUE_TILE=max(DOT_MIN, triton.next_power_of_2(value_size)),
        BLOCK=keys.shape[1],
        TILE=tile_tokens(max(size, value_size), query.element_size()),
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        **COMPILING,
    )


def tile_tokens(size: int, number_bytes: int) -> int:
    """The number of tokens scored at once, for heads of `size` numbers."""
    fewest, most = TILES
    width: int = triton.next_power_of_2(size)
    return max(fewest, min(most, TILE_BYTES // (width * number_bytes)))


# What changes from step to step must not be specialised: Triton would compile the kernel anew, for seconds, when a
# number first becomes 1 or a multiple of 16, or an array first begins there. Those of a step are parts of one transfer.
ANYWHERE = ["tables", "owners", "positions", "blocks", "offsets"]


@triton.jit(do_not_specialize=["cap", "window", "width"], do_not_specialize_on_alignment=ANYWHERE)  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    tables,
    owners,
    positions,
    tiles,
    sinks,
    weight_out,
    mixed_out,
    scale,
    cap,
    window,
    width,
    TILED: tl.constexpr,
    WHOLE: tl.constexpr,
    SINKS: tl.constexpr,
    CAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    SHARE: tl.constexpr,
    SHARE_TILE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Read one part of the past of up to ROWS consecutive tokens of a sequence, for the query heads that share a kv
    head."""
    group, part = tl.program_id(1), tl.program_id(2)
    groups, parts = tl.num_programs(1), tl.num_programs(2)
    first, rows = tl.program_id(0), 1
    if TILED:
        first, rows = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    owner, position = tl.load(owners + first), tl.load(positions + first)
    begin, stop = _span(position, rows, window, part, parts, TILE)

    index = tl.arange(0, ROWS * SHARE_TILE)
    row, head = index // SHARE_TILE, index % SHARE_TILE
    real = (row < rows) & (head < SHARE)
    heads = ((first + row) * groups + group) * SHARE + head
    end = (position + row + 1)[:, None]
    asked = _rows(query, heads, real, SIZE, SIZE_TILE)
    best = tl.full([ROWS * SHARE_TILE], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * SHARE_TILE], tl.float32)
    if SINKS:  # a token of the first part that gives nothing
        best = tl.where(part == 0, tl.load(sinks + group * SHARE + head, mask=real, other=0.0), float("-inf"))
        total = tl.where(part == 0, total + 1, total)
    mixed = tl.zeros([ROWS * SHARE_TILE, VALUE_TILE], tl.float32)
    for start in range(begin, stop, TILE):
        token = start + tl.arange(0, TILE)
        here = token < stop
        block = tl.load(tables + owner * width + token // BLOCK, mask=here, other=0).to(tl.int64)
        at = (block * BLOCK + token % BLOCK) * groups + group
        key, value = _rows(keys, at, here, SIZE, SIZE_TILE), _rows(values, at, here, VALUE_SIZE, VALUE_TILE)
        scores = _scores(asked, key, token, here, end, scale, cap, window, CAPPED, PRECISION)
        best, total, mixed = _fold(best, total, mixed, scores, value, PRECISION)
    some = tl.where(total > 0, total, 1.0)
    out = heads * parts + part
    if not WHOLE:
        tl.store(weight_out + out, best + tl.log(some), mask=real)
    axis = tl.arange(0, VALUE_TILE)[None, :]
    inside = real[:, None] & (axis < VALUE_SIZE)
    tl.store(mixed_out + out[:, None] * VALUE_SIZE + axis, mixed / some[:, None], mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _span(position, rows, window, part, parts, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first token of a part, and the one after its last: those that `rows` tokens from `position` on see are
    divided."""
    oldest = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    count = tl.cdiv(tl.cdiv(position + rows - oldest, parts), TILE) * TILE
    begin = oldest + part * count
    return begin, tl.minimum(begin + count, position + rows)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(numbers, at, here, SIZE: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of SIZE numbers, filled up to TILE by zeros; those that are not `here` are zeros."""
    axis = tl.arange(0, TILE)[None, :]
    return tl.load(numbers + at[:, None] * SIZE + axis, mask=here[:, None] & (axis < SIZE), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    asked, key, token, here, end, scale, cap, window, CAPPED: tl.constexpr, PRECISION: tl.constexpr
):
    """The scores of a tile of tokens, -inf for those that are not `here` or that a query before `end` does not see."""
    scores = tl.dot(asked, tl.trans(key), input_precision=PRECISION) * scale
    if CAPPED:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
    visible = here[None, :] & (token[None, :] < end) & ((window == 0) | (token[None, :] >= end - window))
    return tl.where(visible, scores, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _fold(best, total, mixed, scores, value, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add a tile to the largest score, the weight and the weighted sum of each row (online softmax)."""
    higher = tl.maximum(best, tl.max(scores, 1))
    reference = tl.where(higher == float("-inf"), 0.0, higher)  # a row may see nothing of this tile
    kept = tl.exp(best - reference)
    weights = tl.exp(scores - reference[:, None])
    mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return higher, total * kept + tl.sum(weights, 1), mixed


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def _combine(weight, mixed, out, parts, SIZE: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Combine the parts of one token and head. `weight` is the logarithm of the weight of each part's tokens, `mixed`
    their mean value."""
    row, part, axis = tl.program_id(0), tl.arange(0, PARTS), tl.arange(0, TILE)
    logarithm = tl.load(weight + row * parts + part, mask=part < parts, other=float("-inf"))
    share = tl.exp(logarithm - tl.max(logarithm, 0))
    value = tl.load(
        mixed + (row * parts + part)[:, None] * SIZE + axis[None, :],
        mask=(part < parts)[:, None] & (axis < SIZE)[None, :],
        other=0.0,
    )
    tl.store(out + row * SIZE + axis, tl.sum(value * share[:, None], 0) / tl.sum(share, 0), mask=axis < SIZE)


@triton.jit(do_not_specialize_on_alignment=ANYWHERE)  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]
    key,
    value,
    keys,
    values,
    blocks,
    offsets,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    COPIED: tl.constexpr,
):
    """Copy a part of one token's keys and values, KEY and VALUE numbers of all kv heads, to their place."""
    token = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1) * COPIED + tl.arange(0, COPIED)
    place = tl.load(blocks + token) * BLOCK + tl.load(offsets + token)
    tl.store(keys + place * KEY + axis, tl.load(key + token * KEY + axis, mask=axis < KEY), mask=axis < KEY)
    tl.store(values + place * VALUE + axis, tl.load(value + token * VALUE + axis, mask=axis < VALUE), mask=axis < VALUE)
