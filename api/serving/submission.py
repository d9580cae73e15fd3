"""From a valid body to the job that does it, what shapes its events, and what its whole answer is collected in: one
function for each endpoint, whoever calls it."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from api.formats.chat import ChatCollector
from api.formats.common import AnswerCollector, StreamFormatter, WithEventIds
from api.formats.completion import CompletionCollector
from api.formats.embedding import EmbeddingCollector
from api.formats.response import ResponseCollector, ResponseStreamFormatter
from api.http.request_options import RequestOptions
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.response import ResponseRequest
from api.serving.admission import Admission
from api.serving.render_options import RenderOptions, render_options_of
from api.stores.responses import RESPONSE_PREFIX, ResponseRecord, chat_of, record_of
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job
from shared.queue.protocols import StoredRecord


@dataclass(frozen=True, slots=True)
class Submission:
    """`answer` makes what collects it, given the job that is really done, which may be an earlier one; `formatter` what
    frames its stream, with ids or without, where that is not the render_options's way. `record` is stored when the job is
    accepted."""

    job: Job
    render_options: RenderOptions
    collector: Callable[[Job], AnswerCollector]
    make_formatter: Callable[[Job, bool], StreamFormatter] | None = None
    record: StoredRecord | None = None

    def formatter(self, job: Job, *, ids: bool) -> StreamFormatter:
        """`ids`: each frame says where it belongs, so that its stream can be picked up behind it."""
        if self.make_formatter:
            return self.make_formatter(job, ids)
        formatter = replace(self.render_options, created_ms=job.created_ms).formatter(job.id)
        return WithEventIds(formatter) if ids else formatter


async def chat_submission(
    admission: Admission, body: ChatCompletionRequest, options: RequestOptions, *, keep_s: int = 0
) -> Submission:
    """Raises InvalidRequest, NotFound or Forbidden; nothing is accepted yet. So do the others. `keep_s`: how long one
    is kept that is stored."""
    job = replace(await admission.chat(body, options), keep_s=keep_s if body.store else 0)
    return Submission(
        job, render_options_of(job, include_usage=_usage(body), logprobs=bool(body.logprobs)), ChatCollector
    )


async def completion_submission(admission: Admission, body: CompletionRequest, options: RequestOptions) -> Submission:
    job = await admission.completion(body, options)
    render_options = render_options_of(
        job, include_usage=_usage(body), shown=body.n or 1, logprobs=body.logprobs is not None
    )
    return Submission(job, render_options, lambda made: CompletionCollector(made, render_options.form))


async def embedding_submission(admission: Admission, body: EmbeddingRequest, options: RequestOptions) -> Submission:
    job = await admission.embedding(body, options)
    return Submission(
        job, render_options_of(job), lambda made: EmbeddingCollector(made, base64=body.encoding_format == "base64")
    )


async def response_submission(
    admission: Admission,
    body: ResponseRequest,
    options: RequestOptions,
    record: ResponseRecord | None = None,
    keep_s: int = 0,
) -> Submission:
    """`record`: what is kept of the request, and the conversation that it goes on with; without one it stands alone."""
    if record is None:
        if body.previous_response_id or body.background:
            param = "background" if body.background else "previous_response_id"
            raise InvalidRequest(f"A response of a batch has no '{param}'.", param=param)
        record = record_of(body, f"{RESPONSE_PREFIX}{secrets.token_hex(16)}", options.caller.tenant, ())
    job = await admission.chat(chat_of(body, record.items), options)
    job = replace(job, id=record.id, keep_s=keep_s)
    if record.background:
        job = replace(job, grace_ms=None, notify=True)

    def formatter(made: Job, ids: bool) -> StreamFormatter:
        return ResponseStreamFormatter(record.builder(made.id), ids=ids)

    return Submission(job, render_options_of(job), lambda made: ResponseCollector(record.builder(made.id)), formatter)


def _usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# What a batch may hold, by the url of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[Admission, Any, RequestOptions], Awaitable[Submission]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_submission),
    "/v1/completions": (CompletionRequest, completion_submission),
    "/v1/embeddings": (EmbeddingRequest, embedding_submission),
    "/v1/responses": (ResponseRequest, response_submission),
}
