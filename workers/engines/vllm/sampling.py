"""The sampling parameters of a sequence, as vLLM takes them."""

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from workers.scheduling.sequence import Sequence

SEEDS = 2**63
RESUMED = "penstock_resumed"  # names, in a request's `extra_args`, how many of its prompt's tokens are output


def sampling_params(sequence: Sequence, *, tokens_max: int, as_preempted: bool) -> SamplingParams:
    """The parameters for the rest of a sequence that may have at most `tokens_max` tokens of output. vLLM ends nothing
    by itself: the run reads the tokens and knows where the answer ends.

    `as_preempted` says that vLLM will take the output so far for output of its own, so that everything counts from the
    answer's beginning. Otherwise the output so far is prompt to vLLM, and bounds are of what is left.
    """
    sampling, done = sequence.sampling, sequence.output_length
    counted = 0 if as_preempted else done
    params = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=(sampling.seed + sequence.choice_of_prompt) % SEEDS if sampling.seeded else None,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=list(sampling.allowed_token_ids) or None,
        max_tokens=max(tokens_max - counted, 1),
        min_tokens=max(min(sampling.min_tokens, tokens_max) - counted, 0),
        stop_token_ids=sorted(sampling.banned),
        ignore_eos=True,  # every end is among `stop_token_ids`
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(grammar=sequence.constraint.lark) if sequence.constraint else None,
        extra_args={RESUMED: done} if done else None,
        skip_clone=True,
    )
    if sampling.bad_words:
        params._bad_words_token_ids = [list(word) for word in sampling.bad_words]  # vLLM has no tokenizer here
    return params


def resumed_of(params: Any) -> int:
    """The number of a request's last prompt tokens that are output; 0 for one that begins."""
    extra = getattr(params, "extra_args", None) or {}
    return int(extra.get(RESUMED, 0))
