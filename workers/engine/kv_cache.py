"""Keys and values of every sequence in work: one slot each, the lowest free one first, so that slots stay dense."""

import heapq

import torch

from workers.sequence import Sequence


class KVCache:
    """Tensors [slots, kv heads, length, head size] for every layer, made when a layer first shows its shape."""

    def __init__(self, *, slots: int, length: int) -> None:
        self._length = length
        self._slots = slots
        self._free = list(range(slots))
        self._held: dict[Sequence, int] = {}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def slot(self, sequence: Sequence) -> int:
        """The sequence's slot, opened when it has none. There are as many as sequences may run."""
        if sequence not in self._held:
            self._held[sequence] = heapq.heappop(self._free)
        return self._held[sequence]

    def close(self, sequence: Sequence) -> None:
        slot = self._held.pop(sequence, None)
        if slot is not None:
            heapq.heappush(self._free, slot)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's tensors, of the heads, sizes, number type and device of `key` and `value` [1, heads, _, size]."""
        if index not in self._layers:
            self._layers[index] = (self._like(key), self._like(value))
        return self._layers[index]

    def _like(self, sample: torch.Tensor) -> torch.Tensor:
        return sample.new_zeros(self._slots, sample.shape[1], self._length, sample.shape[3])
