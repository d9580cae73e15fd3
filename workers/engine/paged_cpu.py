"""Attention of single tokens on a CPU, with the blocks of the cache written and read where they lie. float32.

Compiled by numba when first used. Each head of each token is summed over its own blocks in order, so that its result
does not depend on what else is in the step.
"""

import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from workers.engine.packing import Scoring, Step
from workers.limits import BLOCK_SIZE as SIZE

REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # sums in vector lanes; infinities stay what they are
CACHED = os.access(Path(__file__).parent, os.W_OK)
UNROLLED = 8


def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scoring: Scoring) -> Any:
    """`packing.Reader`."""
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    sinks = scoring.sinks if scoring.sinks is not None else query.new_full((query.shape[1],), float("-inf"))
    rows, groups = query.shape[0], keys.shape[2]
    _attend(
        query.numpy(),
        keys.permute(0, 2, 3, 1).numpy(),
        values.permute(0, 2, 1, 3).numpy(),
        step.tables.numpy(),
        step.owners.numpy(),
        step.positions.numpy(),
        min(groups, -(-torch.get_num_threads() // rows)),
        np.float32(scoring.scale),
        scoring.window or 0,
        np.float32(scoring.cap or 0),
        sinks.detach().float().numpy(),
        out.numpy(),
    )
    return out


def write(key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step) -> None:
    """`key`, `value`: [kv heads, tokens, size], into the step's blocks."""
    arrays = (key.numpy(), value.numpy(), keys.permute(0, 2, 3, 1).numpy(), values.permute(0, 2, 1, 3).numpy())
    _write(*arrays, step.blocks.numpy(), step.offsets.numpy())


def compiled(**options: Any) -> Any:
    return numba.njit(fastmath=REASSOCIATE, boundscheck=False, cache=CACHED, **options)


@compiled(parallel=True)  # type: ignore[untyped-decorator]
def _attend(
    query: Any,
    keys: Any,
    values: Any,
    tables: Any,
    owners: Any,
    positions: Any,
    parts: int,
    scale: Any,
    window: int,
    cap: Any,
    sinks: Any,
    out: Any,
) -> None:
    """`keys` [blocks, kv heads, head size, block size], `values` [blocks, kv heads, block size, head size]. A token's
    kv heads are computed together, as they lie together, but in `parts` where there are fewer tokens than threads."""
    groups = keys.shape[1]
    share = query.shape[1] // groups
    for item in numba.prange(query.shape[0] * parts):
        row, part = item // parts, item % parts
        first_group, last_group = part * groups // parts, (part + 1) * groups // parts
        end = positions[row] + 1
        start = max(end - window, 0) if window else 0
        first, last = start // SIZE, (end + SIZE - 1) // SIZE
        heads = slice(first_group * share, last_group * share)
        blocks = tables[owners[row], first:last]
        scores = np.empty(((last_group - first_group) * share, last - first, SIZE), np.float32)
        _score(query[row, heads], keys[:, first_group:last_group], blocks, scale, scores)
        for head in range(scores.shape[0]):
            flat = scores[head].reshape(-1)
            _weigh(flat, start - first * SIZE, end - first * SIZE, cap, sinks[heads.start + head])
        _mix(scores, values[:, first_group:last_group], blocks, out[row, heads])


@compiled(parallel=True)  # type: ignore[untyped-decorator]
def _write(key: Any, value: Any, keys: Any, values: Any, blocks: Any, offsets: Any) -> None:
    for group in numba.prange(key.shape[0]):
        for token in range(key.shape[1]):
            to, at = keys[blocks[token], group], offsets[token]
            for i in range(key.shape[2]):
                to[i, at] = key[group, token, i]
            to = values[blocks[token], group, at]
            for i in range(value.shape[2]):
                to[i] = value[group, token, i]


@compiled()  # type: ignore[untyped-decorator]
def _score(query: Any, keys: Any, blocks: Any, scale: Any, scores: Any) -> None:
    share = query.shape[0] // keys.shape[1]
    for n in range(blocks.shape[0]):
        for group in range(keys.shape[1]):
            key = keys[blocks[n], group]
            for head in range(group * share, (group + 1) * share):
                total = scores[head, n]
                total[:] = 0
                for i in range(key.shape[0]):
                    x = query[head, i] * scale
                    for token in range(SIZE):
                        total[token] += x * key[i, token]


@compiled()  # type: ignore[untyped-decorator]
def _weigh(scores: Any, start: int, end: int, cap: Any, sink: Any) -> None:
    """Softmax of `scores[start:end]` in place, zeros beside it. `sink` scores a token that is then left out."""
    best = sink
    for i in range(start, end):
        if cap:
            scores[i] = cap * np.tanh(scores[i] / cap)
        best = max(best, scores[i])
    scores[:start] = 0
    scores[end:] = 0
    total = np.exp(sink - best)
    for i in range(start, end):
        scores[i] = np.exp(scores[i] - best)
        total += scores[i]
    share = np.float32(1) / total
    for i in range(start, end):
        scores[i] *= share


@compiled()  # type: ignore[untyped-decorator]
def _mix(weights: Any, values: Any, blocks: Any, out: Any) -> None:
    share = out.shape[0] // values.shape[1]
    out[:] = 0
    for n in range(blocks.shape[0]):
        for group in range(values.shape[1]):
            value = values[blocks[n], group]
            for head in range(group * share, (group + 1) * share):
                weight, mixed = weights[head, n], out[head]
                for token in range(0, SIZE, UNROLLED):
                    for i in range(value.shape[1]):
                        mixed[i] += (
                            weight[token] * value[token, i]
                            + weight[token + 1] * value[token + 1, i]
                            + weight[token + 2] * value[token + 2, i]
                            + weight[token + 3] * value[token + 3, i]
                            + weight[token + 4] * value[token + 4, i]
                            + weight[token + 5] * value[token + 5, i]
                            + weight[token + 6] * value[token + 6, i]
                            + weight[token + 7] * value[token + 7, i]
                        )
