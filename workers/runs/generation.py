"""A run that generates text: its sequences, and their text so far. Pure decisions."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from shared.domain.errors import ContextLengthExceeded, InvalidRequest
from shared.domain.events import Completed, Delta, Echoed, Event, FinishReason, Likelihood, Logprobs, Usage
from shared.domain.job import Job, Kind, Sampling
from shared.queue.protocols import Delivery
from workers.parsers.output_parser import ParsedDelta
from workers.protocols import Defaults, Model
from workers.runs.bad_words import Words, bad_words_of
from workers.runs.detokenizer import IncrementalDetokenizer
from workers.runs.run import JobRun, require_known
from workers.runs.truncation import fitting_chat
from workers.scheduling.sequence import NOTHING, Sampled, SamplingParams, Sequence
from workers.text.tokenizer import Chat, Tokenizer, plain_chat, require_fit

LOGPROB_MIN = -9999.0  # what OpenAI writes for a token that cannot be; JSON knows no infinity
Number = TypeVar("Number", int, float)


class Prompt(NamedTuple):
    """`tokens_max` bounds each answer to it, in tokens. `chat` says how an answer is read. `echo` is the text of the
    prompt that comes back before them, if asked for."""

    ids: list[int]
    tokens_max: int
    chat: Chat
    echo: str | None = None


class Said(NamedTuple):
    """The parts that a token adds to an answer, and the reason if it is the last."""

    delta: ParsedDelta
    reason: FinishReason | None


class Generation(JobRun):
    """Output that earlier attempts logged counts as output, never as prompt, so that stops, budgets and usage continue
    where they were. Choices are numbered over all prompts: `n` for the first, then `n` for the next."""

    def __init__(self, delivery: Delivery, model: Model) -> None:
        """Raises InvalidRequest when a prompt cannot be encoded or does not fit the model."""
        job = delivery.job
        if not model.writes:
            message = f"The model '{job.model}' writes no text: ask /v1/embeddings or /v1/rerank."
            raise InvalidRequest(message, param="model")
        self._prompts = _prompts(job, model)
        require_known([id_ for id_, _ in job.sampling.logit_bias], model.limits.vocabulary, param="logit_bias")
        require_known(job.sampling.stop_token_ids, model.limits.vocabulary, param="stop_token_ids")
        prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts)
        super().__init__(delivery, prompt_tokens=prompt_tokens, dtype=model.dtype)
        self._n = job.sampling.n
        self._eos_ids = frozenset(job.sampling.stop_token_ids)
        if not job.sampling.ignore_eos:
            self._eos_ids |= model.tokenizer.eos_ids
        require_known(job.sampling.allowed_token_ids, model.limits.vocabulary, param="allowed_token_ids")
        self._bad_words = bad_words_of(job.sampling.bad_words, model)
        self._token_bytes = model.tokenizer.token_bytes
        self._decode_whole = partial(model.tokenizer.decode, special=True)
        self._echoed = {event.prompt for event in delivery.log if isinstance(event, Echoed)}
        choices = range(len(self._prompts) * self._n)
        self._detokenizers = [self._detokenizer(choice) for choice in choices]
        self._parsers = [self._prompt(choice).chat.make_parser(f"{job.id} {choice}") for choice in choices]
        self._reasoned = 0  # tokens
        self.sequences = [self._sequence(model, choice) for choice in choices]
        self._open = set(choices)
        self._replay_log()

    def _detokenizer(self, choice: int) -> IncrementalDetokenizer:
        prompt = self._prompt(choice)
        sampling = self.delivery.job.sampling
        return IncrementalDetokenizer(
            prompt.chat.decode if sampling.skip_special_tokens else self._decode_whole,
            eos_ids=self._eos_ids,
            stop=sampling.stop,
            tokens_max=prompt.tokens_max,
            stop_included=sampling.include_stop_str_in_output,
        )

    def _sequence(self, model: Model, choice: int) -> Sequence:
        job, choice_of_prompt = self.delivery.job, choice % self._n
        sampling = sampling_params(job.sampling, model.defaults, self._eos_ids, self._bad_words)
        if choice_of_prompt == 0 and choice // self._n not in self._echoed:
            sampling = replace(sampling, prompt_logprobs=job.request.get("prompt_logprobs"))
        return Sequence(
            job_id=job.id,
            choice=choice,
            choice_of_prompt=choice_of_prompt,
            prompt=self._prompt(choice).ids,
            sampling=sampling,
            salt=job.cache_salt.encode(),
            adapter=job.model if job.model in model.adapters else "",
            constraint=self._prompt(choice).chat.constraint(),
        )

    def _prompt(self, choice: int) -> Prompt:
        return self._prompts[choice // self._n]

    def tokens_left(self, sequence: Sequence) -> int:
        """The number of tokens that the answer may still have."""
        return self._prompt(sequence.choice).tokens_max - sequence.output_length

    @property
    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.choice in self._open]

    def tokens_max(self, sequence: Sequence) -> int:
        """The most tokens that the sequence's answer may have."""
        return self._prompt(sequence.choice).tokens_max

    def opening(self) -> list[Event]:
        """The opening events, and the prompts that come back without anything that must be computed."""
        events = super().opening()
        for index, prompt in enumerate(self._prompts):
            if prompt.echo is not None and self.sequences[index * self._n].sampling.prompt_logprobs is None:
                events += self._echo(index)
        return events

    @property
    def done(self) -> bool:
        return not self._open

    def completed(self) -> Completed:
        completion = sum(min(each.output_length, self._prompt(each.choice).tokens_max) for each in self.sequences)
        cached = sum(
            min(each.cached_tokens or 0, each.prompt_length) for each in self.sequences if each.choice_of_prompt == 0
        )
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion,
            cached_tokens=cached,
            reasoning_tokens=self._reasoned,
        )
        return Completed(usage=usage)

    def advance(self, sequence: Sequence, new: Sampled) -> list[Event]:
        """The events of one new token: a Delta, and Finished if it was the last of the last choice. Raises any error of
        reading the answer; InvalidRequest if the request itself is at fault."""
        if new.token == NOTHING:
            param = sequence.sampling.forbids or "min_tokens"
            beside = " and the grammar together forbid" if sequence.constraint else " forbids"
            raise InvalidRequest(f"'{param}'{beside} every token.", param=param)
        events = self._echo(sequence.choice // self._n) if sequence.sampling.prompt_logprobs is not None else []
        if self._prompt(sequence.choice).tokens_max:
            parts, reason = self._add_token(sequence, new.token)
            ids: tuple[int, ...] = (new.token,)
            logprobs = self._logprobs(sequence, new)
        else:
            parts, reason, ids, logprobs = ParsedDelta(), FinishReason.LENGTH, (), ()  # only the prompt is wanted
        if reason is not None:
            self._open.discard(sequence.choice)
        delta = Delta(
            seq=self.number(),
            choice=sequence.choice,
            text=parts.text,
            token_ids=ids,
            finish_reason=reason,
            logprobs=logprobs,
            reasoning=parts.reasoning,
            calls=parts.calls,
            stop=self._detokenizers[sequence.choice].stopped_by,
        )
        return [*events, delta, *self.closing()]

    def _echo(self, index: int) -> list[Event]:
        """The event of a prompt that comes back, unless it was sent already."""
        if index in self._echoed:
            return []
        self._echoed.add(index)
        prompt, sequence = self._prompts[index], self.sequences[index * self._n]
        logprobs: tuple[Logprobs, ...] = ()
        if sequence.sampling.prompt_logprobs is not None:
            scored = {0: Sampled(prompt.ids[0])} | sequence.scored
            logprobs = tuple(self._likelihood(scored[at]) for at in range(len(prompt.ids)))
        return [Echoed(seq=self.number(), prompt=index, text=prompt.echo or "", logprobs=logprobs)]

    def _add_token(self, sequence: Sequence, token: int) -> Said:
        detokenizer, constraint = self._detokenizers[sequence.choice], sequence.constraint
        parser = self._parsers[sequence.choice]
        text, reason = detokenizer.push(token)
        if constraint and token not in sequence.sampling.banned:
            constraint.accept(token)
            if reason is None and constraint.ended:
                text, reason = text + detokenizer.end(), FinishReason.STOP
        parts = parser.push(text, reason)
        self._reasoned += parser.reasoning
        if reason is None and parser.enough:
            reason = FinishReason.STOP
        if reason is FinishReason.STOP and parser.called:
            reason = FinishReason.TOOL_CALLS
        return Said(parts, reason)

    def _logprobs(self, sequence: Sequence, new: Sampled) -> tuple[Logprobs, ...]:
        is_end = self.delivery.job.kind is Kind.CHAT and new.token in self._eos_ids
        return () if sequence.sampling.logprobs is None or is_end else (self._likelihood(new),)

    def _likelihood(self, new: Sampled) -> Logprobs:
        chosen, *top = (
            Likelihood(self._token_bytes(token), max(logprob, LOGPROB_MIN))
            for token, logprob in ((new.token, new.logprob), *new.top)
        )
        return Logprobs(chosen, tuple(top))

    def _replay_log(self) -> None:
        for event in self.delivery.log:
            if isinstance(event, Delta):
                for token in event.token_ids:
                    self.sequences[event.choice].ids.append(token)
                    self._add_token(self.sequences[event.choice], token)
                if event.finish_reason is not None:
                    self._open.discard(event.choice)


def _prompts(job: Job, model: Model) -> list[Prompt]:
    """The prompts of a job: a chat has one; a completion may have several, each a text or token ids."""
    context, grammar = model.limits.context_length, job.sampling.grammar
    if job.kind is Kind.CHAT:
        chat = fitting_chat(job, model)
        return [Prompt(chat.ids, budget(len(chat.ids), job.sampling, context, param="messages"), chat)]
    prompts = []
    for item in job.request["prompts"]:
        if isinstance(item, str):
            require_fit(len(item), model.tokenizer, context, param="prompt")
        ids = (
            model.tokenizer.encode_text(item)
            if isinstance(item, str)
            else require_known(item, model.limits.vocabulary, param="prompt")
        )
        if not ids:
            raise InvalidRequest("'prompt' must not be empty: it has no tokens.", param="prompt")
        echo = (item if isinstance(item, str) else written(ids, model.tokenizer)) if job.request["echo"] else None
        tokens_max = budget(len(ids), job.sampling, context, param="prompt")
        prompts.append(Prompt(ids, tokens_max, plain_chat(ids, model.tokenizer, grammar), echo))
    return prompts


def written(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of a prompt's ids, special tokens included. Some tokenizers write a space before each text."""
    text = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
    return text if tokenizer.decode(ids).startswith(" ") else text.removeprefix(" ")


def budget(prompt_tokens: int, sampling: Sampling, context_length: int, *, param: str) -> int:
    """The most tokens that the answer may have. Raises ContextLengthExceeded, as OpenAI words it."""
    fitting = max(context_length - prompt_tokens, 1)
    max_tokens = fitting if sampling.max_tokens is None else sampling.max_tokens
    if sampling.clamped:
        max_tokens = min(max_tokens, fitting)
    if prompt_tokens + max_tokens > context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the {param}, {max_tokens} in the completion). "
            f"Please reduce the length of the {param} or completion.",
            param=param,
        )
    return max_tokens


def sampling_params(
    sampling: Sampling, defaults: Defaults, eos_ids: frozenset[int], bad_words: Words = ()
) -> SamplingParams:
    """The request's sampling parameters, and the model's own for those it leaves open."""
    return SamplingParams(
        seed=sampling.seed,
        seeded=sampling.seeded,
        temperature=_or(sampling.temperature, defaults.temperature),
        top_p=_or(sampling.top_p, defaults.top_p),
        top_k=_or(sampling.top_k, defaults.top_k),
        min_p=_or(sampling.min_p, 0.0),
        repetition_penalty=_or(sampling.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        min_tokens=sampling.min_tokens,
        banned=eos_ids,
        bad_words=bad_words,
        allowed_token_ids=sampling.allowed_token_ids,
        logprobs=sampling.logprobs,
    )


def _or(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked
