"""A valid body becomes a submission: the job that a worker computes, and the formatter of its answer for this client.
There is one function for each endpoint. All raise InvalidRequest, NotFound or Forbidden, and enqueue nothing yet."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.formats.chat import ChatFormatter
from api.formats.common import Formatter, WholeOnly
from api.formats.completion import CompletionFormatter
from api.formats.embedding import EmbeddingCollector
from api.formats.messages import MessagesFormatter, Thinking
from api.formats.rerank import RankingCollector
from api.formats.tokens import InputTokensCollector, TextCollector, TokenCountCollector, TokenListCollector
from api.http.request_options import RequestOptions
from api.schemas.base import listed
from api.schemas.chat import ChatCompletionRequest, Message
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.messages import CountTokensRequest, MessagesRequest
from api.schemas.rerank import RerankRequest
from api.schemas.response import ResponseRequest
from api.schemas.tokens import Counted, DetokenizeRequest, TokenCountRequest, TokenizeRequest
from api.schemas.tools import tools_request
from api.serving.message_chat import chat_of_message, thinking_of
from api.serving.render_options import RenderOptions, render_options_of
from api.serving.response_chat import chat_of, named_as_sent, require_own_tools, tool_grammars
from api.serving.sampling import sampling_of
from api.serving.services import Services
from api.stores.responses import ResponseRecord, record_of
from api.stores.stored_chats import stored_chat
from shared.domain.job import LENGTHS, Job, Kind
from shared.queue.protocols import StoredRecord


@dataclass(frozen=True, slots=True)
class Submission:
    """A request that is ready to be enqueued. `formatter` formats the job's events for this client; `record` is stored
    when the job is accepted. `keep_alive` is how long the model shall stay loaded then, as the client wrote it."""

    job: Job
    formatter: Formatter
    record: StoredRecord | None = None
    keep_alive: float | str | None = None

    @property
    def render_options(self) -> RenderOptions:
        """Return what is stored with the job, so that any API process can rebuild the formatter later."""
        return render_options_of(self.job, self.formatter)


async def chat_submission(
    services: Services, body: ChatCompletionRequest, options: RequestOptions, *, store: bool = False
) -> Submission:
    """Submit a chat. With `store`, the client can read it again for as long as responses are kept."""
    job = await chat_job(services, body, options)
    formatter = ChatFormatter(n=job.sampling.n, **_usage_wanted(body), logprobs=bool(body.logprobs))
    submission = Submission(job, formatter, keep_alive=body.keep_alive)
    if not store:
        return submission
    record = services.chats.stored(stored_chat(body, job, submission.render_options.encode()))
    return replace(submission, job=replace(job, keep_s=services.settings.response_ttl_s), record=record)


async def chat_job(
    services: Services, body: ChatCompletionRequest, options: RequestOptions, *, drop_oldest: bool = False
) -> Job:
    sampling = sampling_of(
        body,
        services.settings,
        n=body.n or 1,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    tools = tools_request(body.tools, body.tool_choice, body.parallel_tool_calls)
    job = await services.admission.job(
        "chatcmpl",
        body.model,
        Kind.CHAT,
        options,
        request=conversation_request(
            body.messages, tools, body.chat_template_kwargs, body.reasoning_effort, drop_oldest=drop_oldest
        )
        | _answered_how(body),
        sampling=sampling,
        tier=body.service_tier,
        user=body.user or body.safety_identifier,
        cache_salt=services.admission.salt(body.cache_salt, options),
        body=body,
    )
    await services.moderation.require_allowed([message.text or "" for message in body.messages], param="messages")
    return job


async def completion_submission(services: Services, body: CompletionRequest, options: RequestOptions) -> Submission:
    """Submit a completion. Of `best_of` candidates the client gets `n`."""
    n, prompts, echo = body.n or 1, listed(body.prompt), bool(body.echo)
    candidates = body.best_of or n
    ranked = 0 if candidates > n else None
    job = await services.admission.job(
        "cmpl",
        body.model,
        Kind.COMPLETION,
        options,
        request={"prompts": prompts, "echo": echo, "prompt_logprobs": body.logprobs if echo else None},
        sampling=sampling_of(
            body,
            services.settings,
            n=candidates,
            max_tokens=body.max_tokens,
            logprobs=ranked if body.logprobs is None else body.logprobs,
        ),
        tier=body.service_tier,
        user=body.user,
        cache_salt=services.admission.salt(body.cache_salt, options),
        body=body,
    )
    await services.moderation.require_texts(prompts, param="prompt")
    formatter = CompletionFormatter(
        prompts=len(prompts),
        candidates=candidates,
        n=n,
        echo=echo,
        logprobs=body.logprobs is not None,
        **_usage_wanted(body),
    )
    return Submission(job, formatter, keep_alive=body.keep_alive)


async def response_submission(
    services: Services,
    body: ResponseRequest,
    options: RequestOptions,
    record: ResponseRecord | None = None,
    *,
    store: bool = False,
    after_ms: int = 0,
) -> Submission:
    """Submit a response. `record` holds the request and the conversation that it continues; without one it stands
    alone. With `store`, the record is stored, and the job is kept as long. It comes later than `after_ms`."""
    if record is None:
        priority = services.admission.priority(options, body.service_tier)
        record = record_of(body, options.caller.tenant, priority=priority)
    require_own_tools(body, record.items, services.settings)
    with named_as_sent():
        chat = chat_of(body, record.items)
        job = await chat_job(services, chat, options, drop_oldest=body.truncation == "auto")
    request = job.request | tool_grammars(body, record.items)
    job = replace(job, id=record.id, request=request, created_ms=max(job.created_ms, after_ms + 1))
    record = replace(record, head=record.head | await _used(services, body, job))
    if record.background:
        job = replace(job, grace_ms=None, notify=True)
    if not store:
        return Submission(job, record, keep_alive=body.keep_alive)
    job = replace(job, keep_s=services.settings.response_ttl_s)
    stored = replace(services.responses.stored(record), created_ms=job.created_ms)
    return Submission(job, record, stored, keep_alive=body.keep_alive)


async def message_submission(services: Services, body: MessagesRequest, options: RequestOptions) -> Submission:
    """Submit a message of Anthropic's API. `max_tokens`, which it must have, is lowered to what fits the context."""
    job = await chat_job(services, chat_of_message(body, services.settings), options)
    request, sampling = job.request | {"thinking": thinking_of(body)}, replace(job.sampling, clamped=True)
    job = replace(job, id=f"msg_{job.id.partition('-')[2]}", request=request, sampling=sampling)
    omitted = body.thinking is not None and body.thinking.display == "omitted"
    thinking = Thinking.HIDDEN if not body.thinks else Thinking.SEALED if omitted else Thinking.SHOWN
    return Submission(job, MessagesFormatter(thinking=thinking, max_tokens=body.max_tokens))


async def input_tokens_submission(services: Services, body: CountTokensRequest, options: RequestOptions) -> Submission:
    """Submit the prompt of a message, to count its tokens."""
    chat = chat_of_message(body, services.settings)
    tools = tools_request(chat.tools, chat.tool_choice, None)
    request = conversation_request(chat.messages, tools, None, chat.reasoning_effort)
    request |= {"special": True, "texts": False, "thinking": thinking_of(body)}
    job = await services.admission.job("tok", body.model, Kind.TOKENS, options, request=request)
    return Submission(job, WholeOnly(InputTokensCollector))


async def _used(services: Services, body: ResponseRequest, job: Job) -> dict[str, Any]:
    """Return what the job's model uses: its name, and its own sampling parameters for those that the request leaves
    open."""
    model = await services.model_registry.model(job.model)
    left_open = {"temperature": model.temperature, "top_p": model.top_p}
    return {"model": job.model} | {name: value for name, value in left_open.items() if getattr(body, name) is None}


async def embedding_submission(services: Services, body: EmbeddingRequest, options: RequestOptions) -> Submission:
    request = {"inputs": listed(body.input), "dimensions": body.dimensions, "truncate": body.truncate_prompt_tokens}
    job = await services.admission.job("embd", body.model, Kind.EMBEDDING, options, request=request, user=body.user)
    in_base64 = body.encoding_format == "base64"
    formatter = WholeOnly(lambda made: EmbeddingCollector(made, base64=in_base64))
    return Submission(job, formatter, keep_alive=body.keep_alive)


async def ranking_submission(services: Services, body: RerankRequest, options: RequestOptions) -> Submission:
    """Submit a ranking: an embedding whose first input is the query."""
    texts, top_n, with_texts = body.texts, body.top_n, body.return_documents
    request = {
        "inputs": [body.query, *texts],
        "dimensions": None,
        "truncate": body.truncate_prompt_tokens,
        "rank": True,
    }
    job = await services.admission.job("rank", body.model, Kind.EMBEDDING, options, request=request, user=body.user)
    return Submission(job, WholeOnly(lambda made: RankingCollector(made, texts, top_n=top_n, with_texts=with_texts)))


async def tokenize_submission(services: Services, body: TokenizeRequest, options: RequestOptions) -> Submission:
    job = await _tokens_job(services, body, options, texts=body.return_token_strs)
    length = (await services.model_registry.model(job.model)).context_length
    return Submission(job, WholeOnly(lambda made: TokenListCollector(made, context_length=length)))


async def token_count_submission(services: Services, body: TokenCountRequest, options: RequestOptions) -> Submission:
    job = await _tokens_job(services, body, options)
    length, max_tokens = (await services.model_registry.model(job.model)).context_length, body.max_tokens
    return Submission(
        job, WholeOnly(lambda made: TokenCountCollector(made, context_length=length, max_tokens=max_tokens))
    )


async def detokenize_submission(services: Services, body: DetokenizeRequest, options: RequestOptions) -> Submission:
    job = await services.admission.job("tok", body.model, Kind.TOKENS, options, request={"tokens": body.tokens})
    return Submission(job, WholeOnly(TextCollector))


async def _tokens_job(services: Services, body: Counted, options: RequestOptions, *, texts: bool = False) -> Job:
    request: dict[str, Any] = {"special": body.add_special_tokens, "texts": texts}
    if body.messages is None:
        request["prompt"] = body.prompt
    else:
        request |= conversation_request(body.messages, tools_request(body.tools, None, None), body.chat_template_kwargs)
    return await services.admission.job("tok", body.model, Kind.TOKENS, options, request=request)


def conversation_request(
    messages: Sequence[Message],
    tools: dict[str, Any],
    template: dict[str, Any] | None,
    effort: str | None = None,
    *,
    drop_oldest: bool = False,
) -> dict[str, Any]:
    """Build a chat's `Job.request` from the parameters that were given."""
    about = {"template": template, "effort": effort, "drop_oldest": drop_oldest}
    given = {name: value for name, value in about.items() if value}
    return {"messages": [_message(message) for message in messages], **tools, **given}


def _answered_how(body: ChatCompletionRequest) -> dict[str, Any]:
    """Return the parts of a chat's `Job.request` that say how the model shall answer."""
    about = {
        "reasons": body.reasons,
        "verbosity": body.verbosity if body.verbosity in LENGTHS else None,
        "continues": body.continue_final_message or None,
        "unbegun": True if body.add_generation_prompt is False and not body.continue_final_message else None,
    }
    return {name: value for name, value in about.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    """Write a message for the chat template. Templates know no developer role, which OpenAI defines as the system role
    of newer models.
    """
    role = "system" if message.role == "developer" else message.role
    kept = message.model_dump(exclude={"role", "content", "refusal"}, exclude_none=True)
    content = message.model_dump(include={"content"})["content"] if message.media else message.text
    return {"role": role, "content": content, **kept}


def _usage_wanted(body: ChatCompletionRequest | CompletionRequest) -> dict[str, bool]:
    asked = body.stream_options
    return {
        "include_usage": bool(asked and asked.include_usage),
        "continuous_usage": bool(asked and asked.continuous_usage_stats),
    }


# The requests that a batch may hold, by the `url` of its lines.
BATCHED: dict[str, tuple[type[Any], Callable[[Services, Any, RequestOptions], Awaitable[Submission]]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, chat_submission),
    "/v1/completions": (CompletionRequest, completion_submission),
    "/v1/embeddings": (EmbeddingRequest, embedding_submission),
    "/v1/responses": (ResponseRequest, response_submission),
}
