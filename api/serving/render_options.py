"""Options that are stored with a job, from which any API shapes its events for the client again. They hold nothing of
what the client wrote."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from api.formats.chat import ChatCollector, ChatStreamFormatter
from api.formats.common import AnswerCollector, StreamFormatter, WithEventIds, never_streamed
from api.formats.completion import CompletionCollector, CompletionForm, CompletionStreamFormatter
from api.http.event_position import START, Position
from shared.domain.job import Job, Kind, Priority, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """The formatter of chats and text completions. `made`: choices that are made of each prompt; `shown`: those that
    the client gets."""

    kind: Kind
    model: str
    created_ms: int
    tenant: str
    grace_ms: int | None
    patience_ms: int
    run_ms: int
    made: int
    shown: int
    prompts: int = 1
    echo: bool = False
    logprobs: bool = False
    include_usage: bool = False

    def encode(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    def job(self, job_id: str, *, priority: Priority = Priority.STANDARD) -> Job:
        """As much of the job as the relay and the formats need. `priority`: the job's hash has it."""
        return Job(
            id=job_id,
            model=self.model,
            kind=self.kind,
            request={},
            sampling=Sampling(seed=0),
            created_ms=self.created_ms,
            patience_ms=self.patience_ms,
            run_ms=self.run_ms,
            grace_ms=self.grace_ms,
            priority=priority,
        )

    def stream(self, job: Job, *, ids: bool, after: Position = START) -> StreamFormatter:
        """Frames up to `after` are left out, if there are ids. Raises InvalidRequest for an answer that only comes
        whole."""
        formatter = self._chunks(job)
        return WithEventIds(formatter, after=after) if ids else formatter

    def whole(self, job: Job) -> AnswerCollector:
        if self.kind is Kind.CHAT:
            return ChatCollector(job, n=self.made, logprobs=self.logprobs)
        return CompletionCollector(job, self._form)

    def _chunks(self, job: Job) -> StreamFormatter:
        match self.kind:
            case Kind.CHAT:
                return ChatStreamFormatter(job, n=self.made, include_usage=self.include_usage)
            case Kind.COMPLETION if self.made == self.shown:
                return CompletionStreamFormatter(job, self._form, include_usage=self.include_usage)
        raise never_streamed()

    @property
    def _form(self) -> CompletionForm:
        return CompletionForm(
            prompts=self.prompts, candidates=self.made, n=self.shown, echo=self.echo, logprobs=self.logprobs
        )


def render_options_of(
    job: Job, *, include_usage: bool = False, shown: int | None = None, logprobs: bool = False
) -> RenderOptions:
    return RenderOptions(
        kind=job.kind,
        model=job.model,
        created_ms=job.created_ms,
        tenant=job.tenant,
        grace_ms=job.grace_ms,
        patience_ms=job.patience_ms,
        run_ms=job.run_ms,
        made=job.sampling.n,
        shown=job.sampling.n if shown is None else shown,
        prompts=len(job.request.get("prompts", [None])),
        echo=bool(job.request.get("echo")),
        logprobs=logprobs,
        include_usage=include_usage,
    )


def decode_render_options(data: str) -> RenderOptions:
    fields: dict[str, Any] = orjson.loads(data)
    return RenderOptions(kind=Kind(fields.pop("kind")), **fields)
