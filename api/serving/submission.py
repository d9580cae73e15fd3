"""Turns a valid body into a submission: the job, and the formatter of its events. There is one function for each
endpoint that a batch may hold, which its route calls, too; rerank and tokens make theirs in the route. All raise
InvalidRequest, NotFound or Forbidden, and enqueue nothing yet."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from api.formats.common import Formatter, WholeOnly
from api.formats.embedding import EmbeddingCollector
from api.http.request_options import RequestOptions
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.response import ResponseRequest
from api.serving.render_options import RenderOptions, render_options_of
from api.serving.services import Services
from api.stores.responses import ResponseRecord, chat_of, record_of
from api.stores.stored_chats import stored_chat
from shared.domain.job import Job
from shared.queue.protocols import StoredRecord


@dataclass(frozen=True, slots=True)
class Submission:
    """A request that is ready to be enqueued. `formatter` shapes the job's events for this client; `render_options` are
    stored with the job, so that any API process can shape them later; `record` is stored when the job is accepted."""

    job: Job
    render_options: RenderOptions
    formatter: Formatter
    record: StoredRecord | None = None


async def chat_submission(
    services: Services, body: ChatCompletionRequest, options: RequestOptions, *, store: bool = False
) -> Submission:
    """Submit a chat. With `store`, the client can read it again for as long as responses are kept."""
    job = await services.admission.chat(body, options)
    render_options = render_options_of(job, include_usage=_usage(body), logprobs=bool(body.logprobs))
    if not store:
        return Submission(job, render_options, render_options)
    job = replace(job, keep_s=services.settings.response_ttl_s)
    return Submission(
        job, render_options, render_options, services.chats.stored(stored_chat(body, job, render_options.encode()))
    )


async def completion_submission(services: Services, body: CompletionRequest, options: RequestOptions) -> Submission:
    job = await services.admission.completion(body, options)
    render_options = render_options_of(
        job, include_usage=_usage(body), n_returned=body.n or 1, logprobs=body.logprobs is not None
    )
    return Submission(job, render_options, render_options)


async def response_submission(
    services: Services,
    body: ResponseRequest,
    options: RequestOptions,
    record: ResponseRecord | None = None,
    *,
    store: bool = False,
) -> Submission:
    """Submit a response. `record` holds the request and the conversation that it continues; without one it stands
    alone. With `store`, the record is stored, and the job is kept as long."""
    if record is None:
        priority = services.admission.priority(options, body.service_tier)
        record = record_of(body, options.caller.tenant, (), priority=priority)
    job = replace(await services.admission.chat(chat_of(body, record.items), options), id=record.id)
    if record.background:
        job = replace(job, grace_ms=None, notify=True)
    if not store:
        return Submission(job, render_options_of(job), record)
    job = replace(job, keep_s=services.settings.response_ttl_s)
    return Submission(job, render_options_of(job), record, services.responses.stored(record))


async def embedding_submission(services: Services, body: EmbeddingRequest, options: RequestOptions) -> Submission:
    job = await services.admission.embedding(body, options)
    in_base64 = body.encoding_format == "base64"
    return Submission(job, render_options_of(job), WholeOnly(lambda made: EmbeddingCollector(made, base64=in_base64)))


def _usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# The requests that a batch may hold, by the `url` of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[Services, Any, RequestOptions], Awaitable[Submission]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_submission),
    "/v1/completions": (CompletionRequest, completion_submission),
    "/v1/embeddings": (EmbeddingRequest, embedding_submission),
    "/v1/responses": (ResponseRequest, response_submission),
}
