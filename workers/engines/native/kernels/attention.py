"""Attention over a batch of sequences packed into one row, each against its own blocks of the cache.

Registered with transformers as `penstock`; the model's own code calls it once per layer, with the step as an argument.
"""

import logging
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from shared.domain.errors import EngineError
from workers.engines.native.kernels.step_layout import Chunk, Kernel, Packed, Scoring, Step

NAME = "penstock"
SCORED = 64  # queries whose scores are in memory at once, where no fused kernel computes them
log = logging.getLogger(__name__)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    penstock_step: Step | Packed,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query`: [1, heads, tokens, size], `key` and `value`: [1, kv heads, tokens, size]; returns
    [1, tokens, heads, value size]."""
    scoring = Scoring(scaling or query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    if isinstance(penstock_step, Packed):
        return _apart(penstock_step, query, key, value, scoring, causal=module.is_causal), None
    step = penstock_step
    keys, values = step.cache.layer(module.layer_idx, key, value)
    step.kernel.write(key[0], value[0], keys, values, step)
    parts = []
    if singles := step.singles:
        parts.append(step.kernel.read(query[0, :, :singles].transpose(0, 1), keys, values, step, scoring))
    if step.chunks and not step.alone:
        parts.append(step.kernel.read_chunks(query[0], key[0], value[0], keys, values, step, scoring))
    if again := query.shape[2] - sum(map(len, parts)):
        parts.append(parts[-1][-1:].expand(again, -1, -1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0), None


def kernels(device: torch.device, dtype: torch.dtype) -> list[Kernel]:
    """The kernels that may serve, the fastest first. The libraries that compile them are imported only if they do."""
    plain = Kernel("gather", scatter, gather, gather_chunks)
    try:
        if device.type == "cpu" and dtype is torch.float32:
            from workers.engines.native.kernels import paged_cpu

            return [Kernel("numba", paged_cpu.write, paged_cpu.read, gather_chunks), plain]
        if device.type == "cuda":
            from workers.engines.native.kernels import paged_triton

            return [Kernel("triton", paged_triton.write, paged_triton.read, paged_triton.read_chunks), plain]
    except ImportError as error:
        log.warning("the cache is read by copies", extra={"reason": str(error)})
    return [plain]


def scatter(key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step) -> None:
    """`step_layout.Writer` for any device and number type."""
    keys[step.blocks, step.offsets] = key.transpose(0, 1)
    values[step.blocks, step.offsets] = value.transpose(0, 1)


def gather(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scoring: Scoring) -> torch.Tensor:
    """`step_layout.Reader` for any device and number type: the blocks of all sequences are copied together, padded to
    the longest."""
    rows, length = query.shape[0], step.longest
    tables = step.tables[step.owners[:rows], : -(-length // keys.shape[1])].long()
    near_keys, near_values = (each[tables].flatten(1, 2)[:, :length].transpose(1, 2) for each in (keys, values))
    mask = visible(step.positions[:rows, None], length, scoring.window, query.dtype).unsqueeze(1)
    return _attention(query.unsqueeze(2), near_keys, near_values, mask, scoring).squeeze(2)


def gather_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scoring: Scoring,
) -> torch.Tensor:
    """`step_layout.ChunkReader` for any device and number type, chunk by chunk. The keys and values that the queries of
    a chunk see are copied together once for all of them."""
    parts = []
    for chunk in step.chunks:
        rows = slice(chunk.begin, chunk.end)
        near_keys, near_values = key[:, rows], value[:, rows]
        if chunk.start:
            end = chunk.start + chunk.end - chunk.begin
            blocks = step.tables[chunk.owner, : -(-end // keys.shape[1])].long()
            near_keys, near_values = (each[blocks].flatten(0, 1)[:end].transpose(0, 1) for each in (keys, values))
        mask = _mask(chunk, step, scoring, query.dtype)
        mixed = _attention(query[None, :, rows], near_keys[None], near_values[None], mask, scoring)
        parts.append(mixed[0].transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mask(chunk: Chunk, step: Step, scoring: Scoring, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask of a chunk, one for all layers of the step that score alike; None if it is causal from the start."""
    if not chunk.start and scoring.plain:
        return None
    name = (chunk, scoring.window)
    if name not in step.made:
        length = chunk.start + chunk.end - chunk.begin
        step.made[name] = visible(step.positions[chunk.begin : chunk.end], length, scoring.window, dtype)
    return step.made[name]


def _apart(
    packed: Packed, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring, *, causal: bool
) -> torch.Tensor:
    """Attention within each passage by itself."""
    if scoring.window and not causal:
        # Models count a window in different ways, and short probes would not show the difference.
        raise EngineError("a window to both sides is left to the model's own code")
    parts = []
    for begin, end in packed.bounds:
        rows = slice(begin, end)
        mask = None
        if not (causal and scoring.plain):
            positions = torch.arange(end - begin, device=query.device)
            mask = visible(positions if causal else positions[-1:], end - begin, scoring.window, query.dtype)
        parts.append(_attention(query[:, :, rows], key[:, :, rows], value[:, :, rows], mask, scoring)[0])
    return torch.cat(parts, 1).transpose(0, 1).unsqueeze(0)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
) -> torch.Tensor:
    """[batch, heads, rows, size] against [batch, kv heads, tokens, size]; without a mask, causal from the start."""
    explicit = scoring.cap is not None or scoring.sinks is not None
    if explicit or query.device.type != "cpu":  # fused kernels of accelerators take grouped heads only without a mask
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    if not explicit:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scoring.scale, enable_gqa=True
        )
    assert mask is not None
    masks = mask.expand(*mask.shape[:-2], query.shape[2], -1).split(SCORED, -2)
    parts = [_scored(each, key, value, near, scoring) for each, near in zip(query.split(SCORED, 2), masks, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _scored(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """The same with scores that no fused kernel computes; they are all in memory."""
    scores = (query @ key.transpose(2, 3)).float() * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    scores = scores + mask
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1].to(value.dtype) @ value
    return scores.softmax(-1).to(value.dtype) @ value


def visible(positions: torch.Tensor, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [..., length]: 0 for each token at or before the position (and within the window), else -inf."""
    seen = torch.arange(length, device=positions.device)
    hidden = seen > positions.unsqueeze(-1)
    if window is not None:
        hidden = hidden | (seen <= positions.unsqueeze(-1) - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))


def register() -> None:
    """Register the attention, and no mask for it: the step carries the information of a mask. With one, transformers
    would look for packed sequences in each step, and wait for the device to find them."""
    AttentionInterface.register(NAME, attend)
