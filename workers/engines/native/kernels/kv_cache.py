"""The tensors behind the block pool: keys and values [blocks, block size, kv heads, head size] of every layer."""

import torch

from workers.process.host_memory import zeros
from workers.scheduling.engine_limits import BLOCK_SIZE

# How the axes lie in memory. A CPU sums over the tokens of a block in vector lanes, so they are the keys' last axis;
# kernels of accelerators want the order of the shape.
CPU_KEYS, CPU_VALUES, AS_SHAPED = (0, 2, 3, 1), (0, 2, 1, 3), (0, 1, 2, 3)


class KVCache:
    """Layers are allocated when they first show their shapes, or at once in the shapes that another cache has seen."""

    def __init__(self, *, blocks: int, like: "KVCache | None" = None) -> None:
        self._blocks = blocks
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if like is not None:
            for index, (keys, values) in like._layers.items():
                self.layer(index, keys[0].transpose(0, 1)[None], values[0].transpose(0, 1)[None])

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all layers seen so far."""
        tensors = [tensor for pair in self._layers.values() for tensor in pair]
        return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's tensors, in the heads, sizes, number type and device of `key` and `value` [1, heads, _, size]."""
        if index not in self._layers:
            on_cpu = key.device.type == "cpu"
            axes = (CPU_KEYS, CPU_VALUES) if on_cpu else (AS_SHAPED, AS_SHAPED)
            self._layers[index] = (self._like(key, axes[0]), self._like(value, axes[1]))
        return self._layers[index]

    def _like(self, sample: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        """Zeros of a layer, laid out by `axes`; on a CPU they take no memory before they are written."""
        shape = (self._blocks, BLOCK_SIZE, sample.shape[1], sample.shape[3])
        laid = [shape[axis] for axis in axes]
        made = zeros(laid, sample.dtype) if sample.device.type == "cpu" else sample.new_zeros(laid)
        return made.permute(*(axes.index(axis) for axis in range(len(axes))))
