"""Attention over a batch of sequences packed into one row, each against its own slot of the cache.

Registered with transformers as `penstock`; the model's own code calls it, once a layer, with the step as an argument.
Decoding rows come first and are computed together; every prefill chunk is computed by itself.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from workers.engine.kv_cache import KVCache

NAME = "penstock"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `begin` to `end` of the packed step are prompt tokens for `slot`, from position `start` on."""

    begin: int
    end: int
    slot: int
    start: int


@dataclass(slots=True, kw_only=True)
class Step:
    """`slots` and `positions`: int64 [decoding rows]. `span` slots from 0 on hold all of them; `length` tokens of
    each slot are looked at."""

    cache: KVCache
    slots: torch.Tensor
    positions: torch.Tensor
    span: int
    length: int
    chunks: list[Chunk]
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [span, 1, 1, length]; slots that do not decode see position 0, to keep them finite."""
        if window not in self._masks:
            position = torch.zeros(self.span, dtype=torch.long, device=self.slots.device)
            position[self.slots] = self.positions
            self._masks[window] = visible(position.unsqueeze(1), self.length, window, dtype).unsqueeze(1)
        return self._masks[window]


def visible(positions: torch.Tensor, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [.., length]: 0 for each token at or before the position (and within the window), else -inf."""
    seen = torch.arange(length, device=positions.device)
    hidden = seen > positions.unsqueeze(-1)
    if window is not None:
        hidden = hidden | (seen <= positions.unsqueeze(-1) - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    penstock_step: Step,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query`: [1, heads, rows, size], `key` and `value`: [1, kv heads, rows, size]; returns [1, rows, heads, size]."""
    step = penstock_step
    keys, values = step.cache.layer(module.layer_idx, key, value)
    parts = []
    if decoding := len(step.slots):
        keys[step.slots, :, step.positions] = key[0, :, :decoding].transpose(0, 1)
        values[step.slots, :, step.positions] = value[0, :, :decoding].transpose(0, 1)
        parts.append(_decode(step, query[0, :, :decoding], keys, values, scaling, sliding_window))
    for chunk in step.chunks:
        rows = slice(chunk.begin, chunk.end)
        end = chunk.start + chunk.end - chunk.begin
        keys[chunk.slot, :, chunk.start : end] = key[0, :, rows]
        values[chunk.slot, :, chunk.start : end] = value[0, :, rows]
        parts.append(_prefill(chunk, query[:, :, rows], keys, values, scaling, sliding_window))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0), None


def _decode(
    step: Step,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """All decoding rows in one call over slots 0 to `span`, read in place: gathering them would copy the cache."""
    heads, rows, size = query.shape
    groups = keys.shape[1]
    laid = query.new_zeros(step.span, groups, heads // groups, size)
    laid[step.slots] = query.transpose(0, 1).reshape(rows, groups, heads // groups, size)
    mask = step.decode_mask(window, query.dtype).expand(step.span, groups, heads // groups, step.length)
    seen_keys, seen_values = keys[: step.span, :, : step.length], values[: step.span, :, : step.length]
    out = scaled_dot_product_attention(laid, seen_keys, seen_values, attn_mask=mask, scale=scaling)
    return out[step.slots].reshape(rows, heads, -1)


def _prefill(
    chunk: Chunk,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    end = chunk.start + chunk.end - chunk.begin
    seen_keys, seen_values = keys[chunk.slot, :, :end].unsqueeze(0), values[chunk.slot, :, :end].unsqueeze(0)
    causal = chunk.start == 0 and window is None
    mask = None
    if not causal:
        positions = torch.arange(chunk.start, end, device=query.device)
        mask = visible(positions, end, window, query.dtype)
    out = scaled_dot_product_attention(
        query, seen_keys, seen_values, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def register() -> None:
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the step carries its own masks
