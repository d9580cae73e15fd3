"""From a valid body to the job that does it, what shapes its events, and what its whole answer is collected in: one
function for each endpoint, whoever calls it."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from api.admission import Admission
from api.formats.chat import WholeChat
from api.formats.common import Answer, Chunks, Numbered
from api.formats.completion import WholeCompletion
from api.formats.embedding import EmbeddingList
from api.formats.response import ResponseChunks, WholeResponse
from api.responses import RESPONSE_PREFIX, ResponseRecord, chat_of, record_of
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.response import ResponseRequest
from api.terms import Terms
from api.view import View, view_of
from shared.errors import InvalidRequest
from shared.job import Job
from shared.queue import StoredRecord


@dataclass(frozen=True, slots=True)
class Work:
    """`answer` makes what collects it, given the job that is really done, which may be an earlier one; `chunks` what
    frames its stream, with ids or without, where that is not the view's way. `record` is stored when the job is
    accepted."""

    job: Job
    view: View
    answer: Callable[[Job], Answer]
    chunks: Callable[[Job, bool], Chunks] | None = None
    record: StoredRecord | None = None

    def frames(self, job: Job, *, ids: bool) -> Chunks:
        """`ids`: each frame says where it belongs, so that its stream can be picked up behind it."""
        if self.chunks:
            return self.chunks(job, ids)
        chunks = replace(self.view, created_ms=job.created_ms).chunks(job.id, priority=job.priority)
        return Numbered(chunks) if ids else chunks


async def chat_work(admission: Admission, body: ChatCompletionRequest, terms: Terms, *, keep_s: int = 0) -> Work:
    """Raises InvalidRequest, NotFound or Forbidden; nothing is accepted yet. So do the others. `keep_s`: how long one
    is kept that is stored."""
    job = replace(await admission.chat(body, terms), keep_s=keep_s if body.store else 0)
    return Work(job, view_of(job, include_usage=_usage(body), logprobs=bool(body.logprobs)), WholeChat)


async def completion_work(admission: Admission, body: CompletionRequest, terms: Terms) -> Work:
    job = await admission.completion(body, terms)
    view = view_of(job, include_usage=_usage(body), shown=body.n or 1, logprobs=body.logprobs is not None)
    return Work(job, view, lambda made: WholeCompletion(made, view.form))


async def embedding_work(admission: Admission, body: EmbeddingRequest, terms: Terms) -> Work:
    job = await admission.embedding(body, terms)
    return Work(job, view_of(job), lambda made: EmbeddingList(made, base64=body.encoding_format == "base64"))


async def response_work(
    admission: Admission, body: ResponseRequest, terms: Terms, record: ResponseRecord | None = None, keep_s: int = 0
) -> Work:
    """`record`: what is kept of the request, and the conversation that it goes on with; without one it stands alone."""
    if record is None:
        if body.previous_response_id or body.background:
            param = "background" if body.background else "previous_response_id"
            raise InvalidRequest(f"A response of a batch has no '{param}'.", param=param)
        priority = admission.priority(terms, body.service_tier)
        response_id = f"{RESPONSE_PREFIX}{secrets.token_hex(16)}"
        record = record_of(body, response_id, terms.caller.tenant, (), priority=priority)
    job = await admission.chat(chat_of(body, record.items), terms)
    job = replace(job, id=record.id, keep_s=keep_s)
    if record.background:
        job = replace(job, grace_ms=None, notify=True)

    def chunks(made: Job, ids: bool) -> Chunks:
        return ResponseChunks(record.builder(made.id), ids=ids)

    return Work(job, view_of(job), lambda made: WholeResponse(record.builder(made.id)), chunks)


def _usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# What a batch may hold, by the url of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[Admission, Any, Terms], Awaitable[Work]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_work),
    "/v1/completions": (CompletionRequest, completion_work),
    "/v1/embeddings": (EmbeddingRequest, embedding_work),
    "/v1/responses": (ResponseRequest, response_work),
}
