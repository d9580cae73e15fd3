"""Attention of single tokens on a CPU, in float32, which reads and writes the blocks of the cache in place.

numba compiles it when this module is imported, unless `compile_cache` has it already. Each head of each token is summed
over its own blocks in order, so that its result does not depend on what else is in the step.
"""

from typing import Any

import numba
import numpy as np
import torch

from workers.engines.native.kernels.compile_cache import keep_compiled
from workers.engines.native.kernels.openmp_tasks import FIRST, TASK, floats, ints, next_piece, run
from workers.engines.native.kernels.step_layout import Scoring, Step
from workers.scheduling.engine_limits import BLOCK_SIZE as SIZE

REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # allows sums in vector lanes, and leaves infinities alone
CACHED = keep_compiled()
UNROLLED = 8


def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scoring: Scoring) -> torch.Tensor:
    """`step_layout.Reader`."""
    query = query.contiguous()
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    sinks = scoring.sinks if scoring.sinks is not None else query.new_full((query.shape[1],), float("-inf"))
    sinks = sinks.detach().float().contiguous()
    scores = np.array([scoring.scale, scoring.cap or 0], dtype=np.float32)
    (rows, heads, size), (blocks, _, groups, value_size) = query.shape, values.shape
    parts = min(groups, -(-torch.get_num_threads() // rows))
    arrays = (query, keys, values, step.tables, step.owners, step.positions, sinks, out)
    shape = (rows, heads, size, blocks, groups, value_size, *step.tables.shape, parts, scoring.window or 0)
    run(_attend, rows * parts, [*(each.data_ptr() for each in arrays), scores.ctypes.data, *shape])
    return out


def write(key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step) -> None:
    """`step_layout.Writer`. `key`, `value`: [kv heads, tokens, size], into the step's blocks."""
    key, value = key.contiguous(), value.contiguous()
    (groups, tokens, size), blocks = key.shape, keys.shape[0]
    arrays = (key, value, keys, values, step.tables, step.owners, step.positions)
    shape = (groups, tokens, size, value.shape[2], blocks, *step.tables.shape)
    run(_write, groups, [*(each.data_ptr() for each in arrays), *shape])


@numba.njit(fastmath=REASSOCIATE, boundscheck=False, cache=CACHED)  # type: ignore[untyped-decorator]
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


@numba.njit(fastmath=REASSOCIATE, boundscheck=False, cache=CACHED)  # type: ignore[untyped-decorator]
def _weigh(scores: Any, start: int, end: int, cap: Any, sink: Any) -> None:
    """Softmax of `scores[start:end]` in place, with zeros beside it. `sink` is the score of a token that takes weight
    and is then left out."""
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


@numba.njit(fastmath=REASSOCIATE, boundscheck=False, cache=CACHED)  # type: ignore[untyped-decorator]
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


@numba.cfunc(TASK, fastmath=REASSOCIATE, boundscheck=False, cache=CACHED)  # type: ignore[untyped-decorator]
def _attend(data: Any) -> None:
    """A task in which each token is a piece of work. Its kv heads are computed together, as they lie together, but in
    `parts` if there are fewer tokens than threads."""
    n = numba.carray(data, (FIRST + 19,))[FIRST:]
    rows, heads, size, count, groups, value_size, sequences, width, parts, window = n[9:19]
    query = floats(n[0], (rows, heads, size))
    keys = floats(n[1], (count, groups, size, SIZE))
    values = floats(n[2], (count, groups, SIZE, value_size))
    tables, owners, positions = ints(n[3], (sequences, width)), ints(n[4], (rows,)), ints(n[5], (rows,))
    sinks, out, scoring = floats(n[6], (heads,)), floats(n[7], (rows, heads, value_size)), floats(n[8], (2,))
    item = next_piece(data)
    while item < rows * parts:
        row, part = item // parts, item % parts
        begin, stop = part * groups // parts, (part + 1) * groups // parts
        end = positions[row] + 1
        start = max(end - window, 0) if window else 0
        first, last = start // SIZE, (end + SIZE - 1) // SIZE
        mine = slice(begin * heads // groups, stop * heads // groups)
        blocks = tables[owners[row], first:last]
        scores = np.empty((mine.stop - mine.start, last - first, SIZE), np.float32)
        _score(query[row, mine], keys[:, begin:stop], blocks, scoring[0], scores)
        for head in range(scores.shape[0]):
            flat = scores[head].reshape(-1)
            _weigh(flat, start - first * SIZE, end - first * SIZE, scoring[1], sinks[mine.start + head])
        _mix(scores, values[:, begin:stop], blocks, out[row, mine])
        item = next_piece(data)


@numba.cfunc(TASK, boundscheck=False, cache=CACHED)  # type: ignore[untyped-decorator]
def _write(data: Any) -> None:
    """A task in which each kv head is a piece of work."""
    n = numba.carray(data, (FIRST + 14,))[FIRST:]
    groups, tokens, size, value_size, count, sequences, width = n[7:14]
    key, value = floats(n[0], (groups, tokens, size)), floats(n[1], (groups, tokens, value_size))
    keys = floats(n[2], (count, groups, size, SIZE))
    values = floats(n[3], (count, groups, SIZE, value_size))
    tables, owners, positions = ints(n[4], (sequences, width)), ints(n[5], (tokens,)), ints(n[6], (tokens,))
    group = next_piece(data)
    while group < groups:
        for token in range(tokens):
            block, at = tables[owners[token], positions[token] // SIZE], positions[token] % SIZE
            for i in range(size):
                keys[block, group, i, at] = key[group, token, i]
            for i in range(value_size):
                values[block, group, at, i] = value[group, token, i]
        group = next_piece(data)
