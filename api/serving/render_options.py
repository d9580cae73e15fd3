"""What is kept with a job to shape its events for a client again: none of what the client wrote."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from api.formats.chat import ChatStreamFormatter
from api.formats.common import StreamFormatter
from api.formats.completion import CompletionForm, CompletionStreamFormatter
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job, Kind, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """`made`: choices that are made of each prompt; `shown`: those that the client gets."""

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

    @property
    def form(self) -> CompletionForm:
        return CompletionForm(n=self.shown, logprobs=self.logprobs)

    def job(self, job_id: str) -> Job:
        """As much of it as formats need."""
        return Job(
            id=job_id,
            model=self.model,
            kind=self.kind,
            request={"prompts": [""] * self.prompts, "echo": self.echo},
            sampling=Sampling(seed=0, n=self.made, logprobs=0 if self.logprobs else None),
            created_ms=self.created_ms,
            patience_ms=self.patience_ms,
            run_ms=self.run_ms,
            grace_ms=self.grace_ms,
        )

    def formatter(self, job_id: str) -> StreamFormatter:
        """Raises InvalidRequest for a job whose answer is never streamed."""
        match self.kind:
            case Kind.CHAT:
                return ChatStreamFormatter(self.job(job_id), include_usage=self.include_usage)
            case Kind.COMPLETION if self.made == self.shown:
                return CompletionStreamFormatter(self.job(job_id), self.form, include_usage=self.include_usage)
        raise InvalidRequest("This job's answer comes whole: send the request again with its Idempotency-Key.")


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
