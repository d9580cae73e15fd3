"""Linear layers with weights laid out once for oneDNN, which otherwise reorders them at every call on a CPU."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workers.engines.native.weights.placement import spread
from workers.process.free_memory import memory_available


class PackedLinear(nn.Module):
    """A layer that computes the same as the layer it was made from. float32 on the CPU only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, rows: int) -> None:
        """`weight`: [out, in]. `rows` is the usual number of rows in a step; any number works."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


Replaced = list[tuple[nn.Module, str, nn.Module]]


def can_pack(model: Any) -> bool:
    """True on a CPU with oneDNN and with room for a second copy of a layer until the first is freed."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (
        model.device.type == "cpu"
        and not spread(model)
        and model.dtype is torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and weights < memory_available()
    )


def pack(model: nn.Module, *, rows: int) -> Replaced:
    """Replace every plain linear layer of the model, in place; return the input of `unpack`. Quantised layers stay."""
    replaced: Replaced = []
    for name, child in list(model.named_children()):
        layer: Any = child
        if type(child) in (nn.Linear, Conv1D) and type(layer.weight.data) is torch.Tensor:
            weight = layer.weight if type(child) is nn.Linear else layer.weight.T  # GPT-2's layers hold it transposed
            setattr(model, name, PackedLinear(weight, layer.bias, rows=rows))
            replaced.append((model, name, child))
        else:
            replaced += pack(child, rows=rows)
    return replaced


def unpack(replaced: Replaced) -> None:
    for parent, name, linear in replaced:
        setattr(parent, name, linear)
