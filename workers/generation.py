"""A delivery that asks for text: its sequences and their text so far. Pure decisions."""

from typing import TypeVar

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.events import Completed, Delta, Event, FinishReason, Likelihood, Logprobs, Usage
from shared.job import Sampling
from shared.queue import Delivery
from workers.engine.base import Defaults, Engine
from workers.sequence import Choosing, Sampled, Sequence
from workers.transcript import Transcript
from workers.turn import Turn

LOGPROB_MIN = -9999.0  # what OpenAI writes for a token that cannot be; JSON knows no infinity
Number = TypeVar("Number", int, float)


class Generation(Turn):
    """Output that earlier attempts logged comes back as output, never as prompt, so that stops, budgets and usage count
    on as if nothing had happened."""

    def __init__(self, delivery: Delivery, engine: Engine) -> None:
        """Raises InvalidRequest when the prompt cannot be encoded or does not fit the model."""
        sampling = delivery.job.sampling
        prompt = engine.tokenizer.encode_chat(delivery.job.request["messages"])
        tokens_max = budget(len(prompt), sampling.max_tokens, engine.limits.context_length)
        _require_known(sampling, engine.limits.vocabulary)
        ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= engine.tokenizer.ends
        choosing = _choosing(sampling, engine.defaults, ends)
        super().__init__(delivery, prompt_tokens=len(prompt))
        self._token_bytes = engine.tokenizer.token_bytes
        self._transcripts = [
            Transcript(engine.tokenizer.decode, ends=ends, stop=sampling.stop, tokens_max=tokens_max)
            for _ in range(sampling.n)
        ]
        self.sequences = [
            Sequence(
                job_id=delivery.job.id,
                choice=choice,
                prompt=prompt,
                choosing=choosing,
                salt=delivery.job.cache_salt.encode(),
                adapter=delivery.job.model if delivery.job.model in engine.adapters else "",
                constraint=engine.tokenizer.constraint(sampling.grammar) if sampling.grammar else None,
            )
            for choice in range(sampling.n)
        ]
        self._open = set(range(sampling.n))
        self._replay_log()

    @property
    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.choice in self._open]

    @property
    def done(self) -> bool:
        return not self._open

    def completed(self) -> Completed:
        completion = sum(sequence.made for sequence in self.sequences)
        cached = min(self.sequences[0].cached or 0, self.prompt_tokens)
        usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=completion, cached_tokens=cached)
        return Completed(usage=usage)

    def advance(self, sequence: Sequence, new: Sampled) -> list[Event]:
        """The events of one new token: a Delta, and Finished when it was the last of the last choice."""
        text, reason = self._take(sequence, new.token)
        delta = Delta(
            seq=self.number(),
            choice=sequence.choice,
            text=text,
            token_ids=(new.token,),
            finish_reason=reason,
            logprobs=self._logprobs(sequence, new),
        )
        if reason is not None:
            self._open.discard(sequence.choice)
        return [delta, *self.closing()]

    def _take(self, sequence: Sequence, token: int) -> tuple[str, FinishReason | None]:
        transcript, constraint = self._transcripts[sequence.choice], sequence.constraint
        text, reason = transcript.push(token)
        if constraint and token not in sequence.choosing.banned:
            constraint.accept(token)
            if reason is None and constraint.ended:
                return text + transcript.end(), FinishReason.STOP
        return text, reason

    def _logprobs(self, sequence: Sequence, new: Sampled) -> tuple[Logprobs, ...]:
        if sequence.choosing.logprobs is None or new.token in sequence.choosing.banned:
            return ()
        chosen, *top = (
            Likelihood(self._token_bytes(token), max(logprob, LOGPROB_MIN))
            for token, logprob in ((new.token, new.logprob), *new.top)
        )
        return (Logprobs(chosen, tuple(top)),)

    def _replay_log(self) -> None:
        for event in self.delivery.log:
            if isinstance(event, Delta):
                reason: FinishReason | None = None
                for token in event.token_ids:
                    self.sequences[event.choice].ids.append(token)
                    _, reason = self._take(self.sequences[event.choice], token)
                if reason is not None:
                    self._open.discard(event.choice)


def budget(prompt_tokens: int, max_tokens: int | None, context_length: int) -> int:
    """Tokens the answer may have. Raises ContextLengthExceeded, as OpenAI words it."""
    if max_tokens is None:
        max_tokens = max(context_length - prompt_tokens, 1)
    if prompt_tokens + max_tokens > context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, {max_tokens} in the completion). "
            "Please reduce the length of the messages or completion.",
            param="messages",
        )
    return max_tokens


def _choosing(sampling: Sampling, defaults: Defaults, ends: frozenset[int]) -> Choosing:
    """What was asked for, and the model's own choice where nothing was."""
    return Choosing(
        seed=sampling.seed,
        temperature=_or(sampling.temperature, defaults.temperature),
        top_p=_or(sampling.top_p, defaults.top_p),
        top_k=_or(sampling.top_k, defaults.top_k),
        min_p=_or(sampling.min_p, 0.0),
        repetition_penalty=_or(sampling.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        min_tokens=sampling.min_tokens,
        banned=ends,
        logprobs=sampling.logprobs,
    )


def _or(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked


def _require_known(sampling: Sampling, vocabulary: int) -> None:
    """Raise InvalidRequest for a token id that the model does not have."""
    for param, ids in (
        ("logit_bias", [id_ for id_, _ in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        if unknown := [id_ for id_ in ids if id_ >= vocabulary]:
            raise InvalidRequest(f"'{param}' names token {unknown[0]}; this model has {vocabulary}.", param=param)
