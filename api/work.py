"""From a valid body to what is submitted: the job, and what shapes its events for the client. One function for each
endpoint, whoever calls it. All raise InvalidRequest, NotFound or Forbidden, and accept nothing yet."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from api.formats.common import Formatter, WholeOnly
from api.formats.embedding import EmbeddingList
from api.house import House
from api.responses import ResponseRecord, chat_of, record_of
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.response import ResponseRequest
from api.stored_chats import stored_chat
from api.terms import Terms
from api.view import View, view_of
from shared.job import Job
from shared.queue import StoredRecord


@dataclass(frozen=True, slots=True)
class Work:
    """A request that is ready to be submitted. `formatter` shapes the job's events for this client; `view` is stored
    with the job, so that any API can shape them later; `record` is stored when the job is accepted."""

    job: Job
    view: View
    formatter: Formatter
    record: StoredRecord | None = None


async def chat_work(house: House, body: ChatCompletionRequest, terms: Terms, *, store: bool = False) -> Work:
    """`store`: the client can read the chat again for as long as responses are kept."""
    job = await house.admission.chat(body, terms)
    view = view_of(job, include_usage=_usage(body), logprobs=bool(body.logprobs))
    if not store:
        return Work(job, view, view)
    job = replace(job, keep_s=house.settings.response_ttl_s)
    return Work(job, view, view, house.chats.stored(stored_chat(body, job, view.encode())))


async def completion_work(house: House, body: CompletionRequest, terms: Terms) -> Work:
    job = await house.admission.completion(body, terms)
    view = view_of(job, include_usage=_usage(body), shown=body.n or 1, logprobs=body.logprobs is not None)
    return Work(job, view, view)


async def response_work(
    house: House, body: ResponseRequest, terms: Terms, record: ResponseRecord | None = None, *, store: bool = False
) -> Work:
    """`record`: what is kept of the request, and the conversation that it goes on with; without one it stands alone.
    `store`: the record is stored, and the job is kept as long."""
    record = record or record_of(body, terms.caller.tenant, ())
    job = replace(await house.admission.chat(chat_of(body, record.items), terms), id=record.id)
    if record.background:
        job = replace(job, grace_ms=None, notify=True)
    if not store:
        return Work(job, view_of(job), record)
    job = replace(job, keep_s=house.settings.response_ttl_s)
    return Work(job, view_of(job), record, house.responses.stored(record))


async def embedding_work(house: House, body: EmbeddingRequest, terms: Terms) -> Work:
    job = await house.admission.embedding(body, terms)
    in_base64 = body.encoding_format == "base64"
    return Work(job, view_of(job), WholeOnly(lambda made: EmbeddingList(made, base64=in_base64)))


def _usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# What a batch may hold, by the url of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[House, Any, Terms], Awaitable[Work]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_work),
    "/v1/completions": (CompletionRequest, completion_work),
    "/v1/embeddings": (EmbeddingRequest, embedding_work),
    "/v1/responses": (ResponseRequest, response_work),
}
