"""From a valid body to the job that does it, what shapes its events, and what its whole answer is collected in: one
function for each endpoint, whoever calls it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from api.admission import Admission
from api.formats.chat import WholeChat
from api.formats.common import Answer
from api.formats.completion import WholeCompletion
from api.formats.embedding import EmbeddingList
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.terms import Terms
from api.view import View, view_of
from shared.job import Job


@dataclass(frozen=True, slots=True)
class Work:
    """`answer` makes what collects it, given the job that is really done, which may be an earlier one."""

    job: Job
    view: View
    answer: Callable[[Job], Answer]


async def chat_work(admission: Admission, body: ChatCompletionRequest, terms: Terms) -> Work:
    """Raises InvalidRequest, NotFound or Forbidden; nothing is accepted yet. So do the others."""
    job = await admission.chat(body, terms)
    return Work(job, view_of(job, include_usage=_usage(body)), WholeChat)


async def completion_work(admission: Admission, body: CompletionRequest, terms: Terms) -> Work:
    job = await admission.completion(body, terms)
    view = view_of(job, include_usage=_usage(body), shown=body.n or 1, logprobs=body.logprobs is not None)
    return Work(job, view, lambda made: WholeCompletion(made, view.form))


async def embedding_work(admission: Admission, body: EmbeddingRequest, terms: Terms) -> Work:
    job = await admission.embedding(body, terms)
    return Work(job, view_of(job), lambda made: EmbeddingList(made, base64=body.encoding_format == "base64"))


def _usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# What a batch may hold, by the url of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[Admission, Any, Terms], Awaitable[Work]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_work),
    "/v1/completions": (CompletionRequest, completion_work),
    "/v1/embeddings": (EmbeddingRequest, embedding_work),
}
