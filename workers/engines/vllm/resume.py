"""A sequence with output from elsewhere goes on in vLLM as if it had been preempted there, where this vLLM has the
means.

| what                    | second model runner         | first model runner          | a vLLM without the hook       |
|-------------------------|-----------------------------|-----------------------------|-------------------------------|
| greedy, stops, bounds   | exact                       | exact                       | exact                         |
| penalties               | exact, by `scheduler_hook`  | exact, `resumed_penalties`  | exact, `resumed_penalties`    |
| grammars                | exact, by `scheduler_hook`  | exact, by `scheduler_hook`  | exact, a request for a token  |
| seeds                   | exact: drawn by position    | valid, but drawn anew       | as the model runner draws     |
"""

from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig

from workers.engines.vllm import resumed_penalties, scheduler_hook
from workers.engines.vllm.sampling import sampling_params
from workers.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Resume:
    """`hooked`: vLLM runs our scheduler. `second_runner`: it runs its second model runner. `vocabulary` counts the
    model's tokens."""

    hooked: bool
    second_runner: bool
    vocabulary: int

    def in_steps(self, sequence: Sequence) -> bool:
        """True for a sequence that vLLM gets anew for each token, since it cannot know where its grammar is."""
        return not self.hooked and sequence.constraint is not None and sequence.output_length > 0

    def params(self, sequence: Sequence, *, tokens_max: int) -> SamplingParams:
        params = sampling_params(sequence, tokens_max=tokens_max, as_preempted=self.hooked and self.second_runner)
        if self.in_steps(sequence):
            assert sequence.constraint is not None
            params.structured_outputs = None
            params.allowed_token_ids = sequence.constraint.allowed(self.vocabulary)
            params.max_tokens = 1
        if not (self.hooked and self.second_runner):
            resumed_penalties.take_over(params)
        return params


def prepare(config: VllmConfig, *, hook: bool = True) -> Resume:
    """Change vLLM's configuration, before vLLM starts, so that sequences resume. `hook` is false to do without the
    scheduler's interface."""
    second = bool(getattr(config, "use_v2_model_runner", False))
    hooked = hook and scheduler_hook.supports() and config.scheduler_config.scheduler_cls is None
    if hooked:
        config.scheduler_config.scheduler_cls = scheduler_hook.HOOKS[bool(config.scheduler_config.async_scheduling)]
    if not (hooked and second) and config.model_config.runner_type == "generate":  # one that pools takes none
        processors: list[Any] = list(config.model_config.logits_processors or [])
        config.model_config.logits_processors = [*processors, resumed_penalties.NAME]
    return Resume(hooked, second, config.model_config.get_vocab_size())
