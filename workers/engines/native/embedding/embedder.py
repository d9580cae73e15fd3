"""Embedders make vectors of a model's last hidden states: passages are packed into one row, without padding, and do not
see each other."""

import logging
from collections.abc import Sequence as Seq
from typing import Any

import torch

from workers.engines.native.embedding.pooling import Pooling
from workers.engines.native.kernels.step_layout import Packed, bucket_size
from workers.engines.native.torch_errors import translated

TOLERANCE = 0.02  # per number of a unit vector
log = logging.getLogger(__name__)


class ModelEmbedder:
    """An embedder that computes passages one by one, by the model's own code."""

    pair = None

    def __init__(self, base: Any, pooling: Pooling, *, tokens_max: int) -> None:
        """`base` is a model of transformers without a head."""
        self.tokens_max = tokens_max
        self._base = base
        self._pooling = pooling
        self.size = len(self.embed([_PROBES[0]])[0])

    @torch.inference_mode()
    def embed(self, passages: Seq[Seq[int]]) -> list[list[float]]:
        with translated():
            vectors: list[list[float]] = torch.stack(self._vectors(passages)).tolist()
        return vectors

    def _vectors(self, passages: Seq[Seq[int]]) -> list[torch.Tensor]:
        rows = [torch.tensor([list(passage)], device=self._base.device) for passage in passages]
        return [self._pooling(self._base(input_ids=row).last_hidden_state[0].float()) for row in rows]


class PackedEmbedder(ModelEmbedder):
    """An embedder that computes passages together. The attention of `base` must be set to `attention.NAME`."""

    def _vectors(self, passages: Seq[Seq[int]]) -> list[torch.Tensor]:
        tokens, device = sum(map(len, passages)), self._base.device
        filled = [*passages, [0] * (bucket_size(tokens, device) - tokens)]
        ends = torch.tensor([len(passage) for passage in filled]).cumsum(0).tolist()
        bounds = [(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True) if begin < end]
        first = _first_position(self._base)
        positions = [at for begin, end in bounds for at in range(first, first + end - begin)]
        hidden = self._base(
            input_ids=torch.tensor([[id_ for passage in filled for id_ in passage]], device=device),
            position_ids=torch.tensor([positions], device=device),
            penstock_step=Packed(bounds),
        ).last_hidden_state[0]
        return [self._pooling(hidden[begin:end].float()) for begin, end in bounds[: len(passages)]]


class EmbedderTrials:
    """Must be made while the model has its own attention: the packed way must compute the vectors it has then."""

    def __init__(self, base: Any, pooling: Pooling, *, tokens_max: int) -> None:
        self._base = base
        self._pooling = pooling
        self._tokens_max = tokens_max
        self._expected = torch.empty(0)
        self.own: ModelEmbedder | None = None
        try:
            self.own = ModelEmbedder(base, pooling, tokens_max=tokens_max)
            self._expected = torch.tensor(self.own.embed(_PROBES))
        except Exception as error:  # a model's own code may fail in any way when it is asked for hidden states
            log.warning("this model makes no embeddings", extra={"reason": str(error)})

    def packed(self) -> ModelEmbedder | None:
        """The packed embedder, with attention set to ours; None if its vectors differ."""
        if self.own is None:
            return None
        try:
            embedder = PackedEmbedder(self._base, self._pooling, tokens_max=self._tokens_max)
            difference = (torch.tensor(embedder.embed(_PROBES)) - self._expected).abs().max().item()
            reason = "" if difference < TOLERANCE else f"vectors differ by {difference:.3g}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            log.warning("passages cannot be embedded together", extra={"reason": reason})
        return None if reason else embedder


_PROBES = [[3 + (7 * i) % 50 for i in range(length)] for length in (19, 6)]


def _first_position(base: Any) -> int:
    """The first position: models after RoBERTa count from the number after their padding token's."""
    padding = getattr(getattr(base, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1
