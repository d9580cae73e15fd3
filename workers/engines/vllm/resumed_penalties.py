"""Runs in vLLM's first model runner, which takes the output of a resumed sequence for prompt: presence and frequency
penalties count output alone, so this logits processor counts the output so far, too.

The second model runner has that state by `scheduler_hook` and does not load this.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.model_executor.layers.utils import apply_penalties
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from workers.engines.vllm.sampling import resumed_of

NAME = f"{__name__}:ResumedPenalties"
PENALTIES = "penstock_penalties"  # in a request's `extra_args`: repetition, presence and frequency penalty


def take_over(params: SamplingParams) -> None:
    """Move the penalties of a resumed request to this processor."""
    wanted = [params.repetition_penalty, params.presence_penalty, params.frequency_penalty]
    if resumed_of(params) and wanted != [1.0, 0.0, 0.0]:
        params.extra_args = {**(params.extra_args or {}), PENALTIES: wanted}
        params.repetition_penalty, params.presence_penalty, params.frequency_penalty = 1.0, 0.0, 0.0


class ResumedPenalties(AdapterLogitsProcessor):
    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
        wanted = (params.extra_args or {}).get(PENALTIES)
        return None if wanted is None else _Penalties(resumed_of(params), *wanted)


class _Penalties:
    """Computes as vLLM itself does, of the tokens divided as they were without the interruption."""

    def __init__(self, resumed: int, repetition: float, presence: float, frequency: float) -> None:
        self._resumed = resumed
        self._penalties = (repetition, presence, frequency)

    def __call__(self, prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        prompt, output = prompt_ids[: -self._resumed], [*prompt_ids[-self._resumed :], *output_ids]
        repetition, presence, frequency = (self._row([each], logits, torch.float32)[0] for each in self._penalties)
        new: torch.Tensor = apply_penalties(
            logits.unsqueeze(0),
            self._row(prompt, logits, torch.int64),
            self._row([id_ for id_ in output if id_ >= 0], logits, torch.int64),
            presence,
            frequency,
            repetition,
        )
        return new.squeeze(0)

    def _row(self, values: Any, logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([values], dtype=dtype, device=logits.device)
