"""A run whose text comes from a source: a chat, or completions. The log holds text, and no tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Delta, Echoed, Event, Usage
from shared.domain.job import Job, Kind
from shared.domain.suitability import OF_TOKENS
from shared.queue.protocols import Delivery
from workers.runs.answer import Answer, Part, said_by
from workers.runs.source_run import SourceRun, require_serves
from workers.source import AnswerLost, ChatRequest, ChatSource, CompletionRequest, Piece, Pieces, Resume, Said, text_of


class TextRun(SourceRun):
    """Each choice is an answer that the source is asked for. Choices are numbered over all prompts: `n` for the first,
    then `n` for the next."""

    def __init__(self, delivery: Delivery, source: ChatSource) -> None:
        """Raises InvalidRequest for what the source cannot do."""
        job, self._source = delivery.job, source
        _require_able(job, source)
        self._prompts = job.request["prompts"] if job.kind is Kind.COMPLETION else [None]
        self._prompt_tokens = [source.count(_prompt_text(job, prompt)) for prompt in self._prompts]
        super().__init__(delivery, prompt_tokens=sum(self._prompt_tokens))
        self._echoed = {event.prompt for event in delivery.log if isinstance(event, Echoed)}
        logged: dict[int, list[Delta]] = {choice: [] for choice in range(job.sequences)}
        for event in delivery.log:
            if isinstance(event, Delta):
                logged[event.choice].append(event)
        self._said = {choice: said_by(deltas) for choice, deltas in logged.items()}
        self._over = {choice for choice, deltas in logged.items() if deltas and deltas[-1].finish_reason}
        self._answers = {choice: self._answer(choice) for choice in logged}

    def _answer(self, choice: int) -> Answer:
        repeats = self._source.resume == Resume.REPEAT and choice not in self._over
        return Answer(self._source, self.delivery.job.sampling, self._said[choice], repeats=repeats)

    @property
    def unfinished(self) -> list[int]:
        return [choice for choice in self._answers if choice not in self._over]

    def is_over(self, part: int) -> bool:
        return part in self._over

    def tokens(self, part: int) -> int:
        return self._answers[part].tokens.total

    @property
    def done(self) -> bool:
        return len(self._over) == len(self._answers)

    def opening(self) -> list[Event]:
        """The opening events, and the prompts that come back before their choices."""
        events = super().opening()
        for index, prompt in enumerate(self._prompts):
            if self.delivery.job.request.get("echo") and index not in self._echoed and isinstance(prompt, str):
                events.append(Echoed(seq=self.number(), prompt=index, text=prompt))
        return events

    def ask(self, part: int) -> Pieces:
        """Raises AnswerLost if what was said cannot be continued as the source promises."""
        said = self._said[part]
        _require_resumable(self._source.resume, said, self.delivery.job)
        asked = _request(self.delivery, part, said)
        return self._source.chat(asked) if isinstance(asked, ChatRequest) else self._source.complete(asked)

    def advance(self, part: int, piece: Piece) -> list[Event]:
        return self._told(part, self._answers[part].push(piece))

    def close(self, part: int) -> list[Event]:
        return self._told(part, self._answers[part].end())

    def _told(self, choice: int, part: Part) -> list[Event]:
        if not part:
            return []
        if part.reason is not None:
            self._over.add(choice)
        delta = Delta(
            seq=self.number(),
            choice=choice,
            text=part.text,
            token_ids=(),
            finish_reason=part.reason,
            logprobs=part.logprobs,
            reasoning=part.reasoning,
            calls=part.calls,
            stop=part.stop,
        )
        return [delta, *self.closing()]

    def completed(self) -> Completed:
        counts = [_counted(answer) for answer in self._answers.values()]
        n = self.delivery.job.sampling.n
        prompt_tokens = 0
        for index, estimate in enumerate(self._prompt_tokens):
            told = [count.prompt_tokens for count in counts[index * n : (index + 1) * n] if count.prompt_tokens]
            prompt_tokens += told[0] if told else estimate
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(count.completion_tokens for count in counts),
            cached_tokens=sum(count.cached_tokens for count in counts[::n]),
            reasoning_tokens=sum(count.reasoning_tokens for count in counts),
            estimated=any(answer.usage is None or answer.goes_on for answer in self._answers.values()),
            cost_micros=sum(self._cost(choice, count) for choice, count in enumerate(counts)),
        )
        return Completed(usage=usage)

    def _cost(self, choice: int, count: Usage) -> int:
        """Return what an answer costs. Each of several has paid for its prompt."""
        if count is self._answers[choice].usage:
            return count.cost_micros
        prompt_tokens = self._prompt_tokens[choice // self.delivery.job.sampling.n]
        return self._source.cost(replace(count, prompt_tokens=prompt_tokens))


def _counted(answer: Answer) -> Usage:
    """The usage of one answer; `prompt_tokens` is 0 if the source did not say. A source that went on after what was
    said counted that as a part of its prompt."""
    own = Usage(prompt_tokens=0, completion_tokens=answer.tokens.total, reasoning_tokens=answer.tokens.reasoning)
    return own if answer.usage is None or answer.counts_rest else answer.usage


def _request(delivery: Delivery, choice: int, said: Said) -> ChatRequest | CompletionRequest:
    job, request = delivery.job, delivery.job.request
    about = {
        "job_id": job.id,
        "model": job.model,
        "choice": choice,
        "sampling": job.sampling,
        "said": said,
        "cache_salt": job.cache_salt,
        "user": job.user,
        "left_s": None if delivery.left_ms is None else delivery.left_ms / 1000,
        "extra": request.get("extra", {}),
        "quota": delivery.quota,
    }
    if job.kind is Kind.COMPLETION:
        return CompletionRequest(**about, prompt=request["prompts"][choice // job.sampling.n])
    return ChatRequest(
        **about,
        messages=request["messages"],
        tools=request.get("tools", ()),
        tool_choice=request.get("tool_choice", "auto"),
        parallel_tool_calls=request.get("parallel", True),
        reasoning_effort=request.get("effort"),
        template=request.get("template", {}),
        thinking=request.get("thinking"),
    )


def _require_resumable(resume: Resume | str, said: Said, job: Job) -> None:
    if said and resume == Resume.RESTART:
        raise AnswerLost("The answer broke off when its worker ended, and its source can only begin again.")
    if resume == Resume.PREFILL and (said.calls or (said and job.sampling.grammar)):
        raise AnswerLost("The answer broke off within a form that its source cannot continue.")


def _prompt_text(job: Job, prompt: str | list[int] | None) -> str:
    """A text whose tokens are about those of the prompt."""
    if prompt is not None:
        return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
    lines = [f"{message['role']}: {text_of(message)}" for message in job.request["messages"]]
    return "\n".join(lines) + (orjson.dumps(job.request["tools"]).decode() if job.request.get("tools") else "")


@dataclass(frozen=True, slots=True)
class _Need:
    """An ability that a request needs, by the parameter that asks for it."""

    ability: str
    param: str
    asked: Callable[[Job], object]


NEEDS = (
    _Need("tools", "tools", lambda job: job.request.get("tools")),
    _Need("logprobs", "logprobs", lambda job: job.sampling.logprobs is not None),
    _Need("logit_bias", "logit_bias", lambda job: job.sampling.logit_bias),
    _Need("min_tokens", "min_tokens", lambda job: job.sampling.min_tokens),
    _Need("ignore_eos", "ignore_eos", lambda job: job.sampling.ignore_eos),
    _Need("stop_token_ids", "stop_token_ids", lambda job: job.sampling.stop_token_ids),
    _Need("skip_special_tokens", "skip_special_tokens", lambda job: not job.sampling.skip_special_tokens),
    _Need("bad_words", "bad_words", lambda job: job.sampling.bad_words),
    _Need("allowed_token_ids", "allowed_token_ids", lambda job: job.sampling.allowed_token_ids),
    _Need(
        "include_stop_str_in_output",
        "include_stop_str_in_output",
        lambda job: job.sampling.include_stop_str_in_output and "no_stop_trim" not in job.request.get("extra", ()),
    ),
    _Need("extra_parameters", "continue_final_message", lambda job: job.request.get("continues")),
    _Need("extra_parameters", "add_generation_prompt", lambda job: job.request.get("unbegun")),
    _Need("extra_parameters", "verbosity", lambda job: job.request.get("verbosity")),
    _Need("extra_parameters", "thinking", lambda job: "thinking" in job.request.get("reasons", ())),
    _Need("extra_parameters", "enable_thinking", lambda job: "enable_thinking" in job.request.get("reasons", ())),
    _Need("token_ids", "prompt", lambda job: any(not isinstance(p, str) for p in job.request.get("prompts", ()))),
)


def _require_able(job: Job, source: ChatSource) -> None:
    if job.kind is Kind.CHAT:
        require_serves(source, "chat", job, "answers no chats")
    else:
        require_serves(source, "complete", job, "completes no texts")
    for need in NEEDS:
        sent = need.param in OF_TOKENS and need.param in job.request.get("extra", ())
        if need.ability not in source.abilities and not sent and need.asked(job):
            message = f"'{need.param}' must not be sent to the model '{job.model}', which has no such ability."
            raise InvalidRequest(message, param=need.param)
    if job.sampling.grammar and "structured_outputs" not in source.abilities:
        param = job.sampling.grammar.param
        raise InvalidRequest(f"'{param}': the model '{job.model}' cannot be held to a form.", param=param)
    if job.request.get("drop_oldest"):
        raise InvalidRequest("'truncation' auto needs a model with a tokenizer here.", param="truncation")
    if job.request.get("prompt_logprobs") is not None:
        raise InvalidRequest("'logprobs' of an echoed prompt need a model with a tokenizer here.", param="logprobs")
