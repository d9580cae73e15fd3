"""Options stored with a job, from which any API process rebuilds its stream. They hold no client content."""

from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from typing import Any

import orjson

from api.formats.chat import ChatFormatter
from api.formats.common import Formatter, never_streamed
from api.formats.completion import CompletionFormatter
from api.formats.messages import MessagesFormatter, Thinking
from shared.domain.job import Job, Kind, Priority, Sampling

# These names are stored, since neighbouring releases read them.
STORED_NAMES = {
    "queue_deadline_ms": "patience_ms",
    "run_deadline_ms": "run_ms",
    "n_generated": "made",
    "n_returned": "shown",
}

ADDED = {"continuous_usage", "thinking", "max_tokens"}  # release 0.2 knows none of them


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """The options of a job's answer. A worker generates `n_generated` choices of each prompt, and the client gets
    `n_returned` of them. `thinking` is what a message of the Messages API has of the reasoning, and
    `max_tokens` the length that its client asked for; all other answers have neither."""

    kind: Kind
    model: str
    created_ms: int
    tenant: str
    grace_ms: int | None
    queue_deadline_ms: int
    run_deadline_ms: int
    n_generated: int
    n_returned: int
    prompts: int = 1
    echo: bool = False
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    thinking: Thinking | None = None
    max_tokens: int = 0

    def encode(self) -> str:
        """Encode the options. What releases before 0.3 do not know is left out where it says nothing."""
        given = {name: value for name, value in asdict(self).items() if value or name not in ADDED}
        return orjson.dumps({STORED_NAMES.get(name, name): value for name, value in given.items()}).decode()

    def job(
        self, job_id: str, *, model: str = "", priority: Priority = Priority.STANDARD, not_before_ms: int = 0
    ) -> Job:
        """Rebuild as much of the job as the relay and the formatters need. `priority`, `model` and `not_before_ms` come
        from the job's hash: a replay may be another model's."""
        return Job(
            id=job_id,
            model=model or self.model,
            kind=self.kind,
            request={},
            sampling=Sampling(seed=0),
            created_ms=self.created_ms,
            queue_deadline_ms=self.queue_deadline_ms,
            run_deadline_ms=self.run_deadline_ms,
            grace_ms=self.grace_ms,
            priority=priority,
            not_before_ms=not_before_ms,
        )

    def formatter(self) -> ChatFormatter | CompletionFormatter | MessagesFormatter:
        """Rebuild the formatter of the job's answer. Raises InvalidRequest for an answer that cannot be streamed."""
        match self.kind:
            case Kind.CHAT if self.thinking is not None:
                return MessagesFormatter(thinking=self.thinking, max_tokens=self.max_tokens)
            case Kind.CHAT:
                return ChatFormatter(
                    n=self.n_generated,
                    include_usage=self.include_usage,
                    continuous_usage=self.continuous_usage,
                    logprobs=self.logprobs,
                )
            case Kind.COMPLETION:
                return CompletionFormatter(
                    prompts=self.prompts,
                    candidates=self.n_generated,
                    n=self.n_returned,
                    echo=self.echo,
                    logprobs=self.logprobs,
                    include_usage=self.include_usage,
                    continuous_usage=self.continuous_usage,
                )
        raise never_streamed()


def render_options_of(job: Job, formatter: Formatter) -> RenderOptions:
    return RenderOptions(
        kind=job.kind,
        model=job.model,
        created_ms=job.created_ms,
        tenant=job.tenant,
        grace_ms=job.grace_ms,
        queue_deadline_ms=job.queue_deadline_ms,
        run_deadline_ms=job.run_deadline_ms,
        **_fields_of(formatter),
    )


def _fields_of(formatter: Formatter) -> dict[str, Any]:
    """Return the fields from which a formatter is rebuilt. The formatter of a response is the record that is stored
    with it, and no answer but these is streamed."""
    match formatter:
        case ChatFormatter(n=n):
            fields = {"n_generated": n, "n_returned": n}
        case CompletionFormatter(prompts=prompts, candidates=candidates, n=n, echo=echo):
            fields = {"n_generated": candidates, "n_returned": n, "prompts": prompts, "echo": echo}
        case MessagesFormatter(thinking=thinking, max_tokens=max_tokens):
            return {"n_generated": 1, "n_returned": 1, "thinking": thinking, "max_tokens": max_tokens}
        case _:
            return {"n_generated": 1, "n_returned": 1}
    return fields | {
        "logprobs": formatter.logprobs,
        "include_usage": formatter.include_usage,
        "continuous_usage": formatter.continuous_usage,
    }


def decode_render_options(data: str) -> RenderOptions:
    fields: dict[str, Any] = orjson.loads(data)
    for name, stored_name in STORED_NAMES.items():
        fields[name] = fields.pop(stored_name)
    thinking = fields.pop("thinking", None)
    known = {each.name for each in fields_of(RenderOptions)}  # a later release may store more
    return RenderOptions(
        kind=Kind(fields.pop("kind")),
        thinking=None if thinking is None else Thinking(thinking),
        **{name: fields[name] for name in fields.keys() & known},
    )
