"""Options stored with a job, from which any API process rebuilds its stream. They hold no client content."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from api.formats.chat import ChatCollector, ChatStreamFormatter
from api.formats.common import AnswerCollector, StreamFormatter, WithEventIds, never_streamed
from api.formats.completion import CompletionCollector, CompletionForm, CompletionStreamFormatter
from api.http.event_position import START, Position
from shared.domain.job import Job, Kind, Priority, Sampling

# These names are stored, since neighbouring releases read them.
STORED_NAMES = {
    "queue_deadline_ms": "patience_ms",
    "run_deadline_ms": "run_ms",
    "n_generated": "made",
    "n_returned": "shown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """The options of a job's answer. A worker generates `n_generated` choices of each prompt, and the client gets
    `n_returned` of them."""

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

    def encode(self) -> str:
        return orjson.dumps({STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}).decode()

    def job(self, job_id: str, *, priority: Priority = Priority.STANDARD) -> Job:
        """Rebuild as much of the job as the relay and the formatters need. `priority` comes from the job's hash."""
        return Job(
            id=job_id,
            model=self.model,
            kind=self.kind,
            request={},
            sampling=Sampling(seed=0),
            created_ms=self.created_ms,
            queue_deadline_ms=self.queue_deadline_ms,
            run_deadline_ms=self.run_deadline_ms,
            grace_ms=self.grace_ms,
            priority=priority,
        )

    def stream(self, job: Job, *, ids: bool, after: Position = START) -> StreamFormatter:
        """Return the formatter of the job's stream. With `ids`, it leaves out the frames up to `after`. Raises
        InvalidRequest for an answer that cannot be streamed."""
        formatter = self._chunks(job)
        return WithEventIds(formatter, after=after) if ids else formatter

    def whole(self, job: Job) -> AnswerCollector:
        if self.kind is Kind.CHAT:
            return ChatCollector(job, n=self.n_generated, logprobs=self.logprobs)
        return CompletionCollector(job, self._form)

    def _chunks(self, job: Job) -> StreamFormatter:
        match self.kind:
            case Kind.CHAT:
                return ChatStreamFormatter(job, n=self.n_generated, include_usage=self.include_usage)
            case Kind.COMPLETION if self.n_generated == self.n_returned:
                return CompletionStreamFormatter(job, self._form, include_usage=self.include_usage)
        raise never_streamed()

    @property
    def _form(self) -> CompletionForm:
        return CompletionForm(
            prompts=self.prompts, candidates=self.n_generated, n=self.n_returned, echo=self.echo, logprobs=self.logprobs
        )


def render_options_of(
    job: Job, *, include_usage: bool = False, n_returned: int | None = None, logprobs: bool = False
) -> RenderOptions:
    return RenderOptions(
        kind=job.kind,
        model=job.model,
        created_ms=job.created_ms,
        tenant=job.tenant,
        grace_ms=job.grace_ms,
        queue_deadline_ms=job.queue_deadline_ms,
        run_deadline_ms=job.run_deadline_ms,
        n_generated=job.sampling.n,
        n_returned=job.sampling.n if n_returned is None else n_returned,
        prompts=len(job.request.get("prompts", [None])),
        echo=bool(job.request.get("echo")),
        logprobs=logprobs,
        include_usage=include_usage,
    )


def decode_render_options(data: str) -> RenderOptions:
    fields: dict[str, Any] = orjson.loads(data)
    for name, stored_name in STORED_NAMES.items():
        fields[name] = fields.pop(stored_name)
    return RenderOptions(kind=Kind(fields.pop("kind")), **fields)
