"""Attention over a batch of sequences packed into one row, each against its own blocks of the cache.

Registered with transformers as `penstock`; the model's own code calls it once per layer, with the step as an argument.
"""

import logging
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from shared.domain.errors import EngineError
from workers.engines.native.kernels.step_layout import Chunk, Kernel, Packed, Scoring, Step

NAME = "penstock"
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
    if not step.alone:
        parts += [_chunk(chunk, query, key, value, keys, values, step, scoring) for chunk in step.chunks]
    if again := query.shape[2] - sum(map(len, parts)):
        parts.append(parts[-1][-1:].expand(again, -1, -1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0), None


def kernels(device: torch.device, dtype: torch.dtype) -> list[Kernel]:
    """The kernels that may serve, the fastest first. The libraries that compile them are imported only if they do."""
    plain = Kernel("gather", scatter, gather)
    try:
        if device.type == "cpu" and dtype is torch.float32:
            from workers.engines.native.kernels import paged_cpu

            return [Kernel("numba", paged_cpu.write, paged_cpu.read), plain]
        if device.type == "cuda":
            from workers.engines.native.kernels import paged_triton

            return [Kernel("triton", scatter, paged_triton.read), plain]
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
    rows = query.shape[0]
    length = int(step.positions[:rows].max()) + 1
    tables = step.tables[step.owners[:rows], : -(-length // keys.shape[1])].long()
    near_keys, near_values = (each[tables].flatten(1, 2)[:, :length].transpose(1, 2) for each in (keys, values))
    mask = visible(step.positions[:rows, None], length, scoring.window, query.dtype).unsqueeze(1)
    return _attention(query.unsqueeze(2), near_keys, near_values, mask, scoring).squeeze(2)


def _chunk(
    chunk: Chunk,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scoring: Scoring,
) -> torch.Tensor:
    """Attention of a part of a prompt. The keys and values that its queries see are copied together once for all of
    them."""
    rows = slice(chunk.begin, chunk.end)
    end = chunk.start + chunk.end - chunk.begin
    if chunk.start == 0:
        near_keys, near_values = key[:, :, rows], value[:, :, rows]
    else:
        blocks = step.tables[chunk.owner, : -(-end // keys.shape[1])].long()
        near_keys, near_values = (
            each[blocks].flatten(0, 1)[:end].transpose(0, 1).unsqueeze(0) for each in (keys, values)
        )
    mask = None
    if chunk.start or not scoring.plain:
        mask = visible(step.positions[rows], end, scoring.window, query.dtype)
    return _attention(query[:, :, rows], near_keys, near_values, mask, scoring)[0].transpose(0, 1)


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
    if scoring.cap is None and scoring.sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scoring.scale, enable_gqa=True
        )
    assert mask is not None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
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
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the step carries the information of a mask
