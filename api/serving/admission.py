"""Turns a valid request into a job: the one module that decides which jobs enter a queue."""

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from api.formats.common import SERVICE_TIERS
from api.http.auth import Caller, require_use
from api.http.request_options import RequestOptions, weights
from api.schemas.base import listed
from api.schemas.chat import ChatCompletionRequest, Message
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.rerank import RerankRequest
from api.schemas.sampling import GenerationRequest
from api.schemas.tokens import Counted, DetokenizeRequest
from api.schemas.tools import tools_request
from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import ContextLengthExceeded, InvalidRequest, NotFound
from shared.domain.job import Grammar, GrammarKind, Job, Kind, ModelInfo, Priority, Sampling
from shared.settings import Settings

KNOWN_FOR_S = 5.0
MISSED_FOR_S = 10.0  # the workers' next heartbeat registers a model again after Redis was emptied
# The tiers `auto` and `default` ask for no class: the key or the setting decides.
TIERS = {tier: priority for priority, tier in SERVICE_TIERS.items() if tier != "default"}
ANY_OBJECT = {"type": "object"}


class Admission:
    def __init__(
        self, model_registry: ModelRegistry, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._model_registry = model_registry
        self._settings = settings
        self._clock = clock
        self._weights = weights(settings)
        self._known: dict[str, tuple[float, ModelInfo]] = {}

    async def chat(self, body: ChatCompletionRequest, options: RequestOptions) -> Job:
        """Build the job of a chat, without accepting it. Raises InvalidRequest or NotFound."""
        return await self._job(
            "chatcmpl",
            body.model,
            Kind.CHAT,
            options,
            tier=body.service_tier,
            request=_conversation(
                body.messages,
                tools_request(body.tools, body.tool_choice, body.parallel_tool_calls),
                body.chat_template_kwargs,
                body.reasoning_effort,
            ),
            sampling=self._sampling(
                body,
                n=body.n or 1,
                max_tokens=body.max_completion_tokens or body.max_tokens,
                logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            ),
            user=body.user or body.safety_identifier,
            cache_salt=self._salt(body.cache_salt, options),
        )

    async def completion(self, body: CompletionRequest, options: RequestOptions) -> Job:
        """Build the job of a completion, without accepting it. Of `best_of` candidates the client gets `n`. Raises
        InvalidRequest or NotFound.
        """
        echo = bool(body.echo)
        candidates = body.best_of or body.n or 1
        ranked = 0 if candidates > (body.n or 1) else None
        return await self._job(
            "cmpl",
            body.model,
            Kind.COMPLETION,
            options,
            tier=body.service_tier,
            request={
                "prompts": listed(body.prompt),
                "echo": echo,
                "prompt_logprobs": body.logprobs if echo else None,
            },
            sampling=self._sampling(
                body,
                n=candidates,
                max_tokens=body.max_tokens,
                logprobs=ranked if body.logprobs is None else body.logprobs,
            ),
            user=body.user,
            cache_salt=self._salt(body.cache_salt, options),
        )

    async def embedding(self, body: EmbeddingRequest, options: RequestOptions) -> Job:
        """Build the job of an embedding, without accepting it. Raises NotFound."""
        return await self._job(
            "embd",
            body.model,
            Kind.EMBEDDING,
            options,
            request={
                "inputs": listed(body.input),
                "dimensions": body.dimensions,
                "truncate": body.truncate_prompt_tokens,
            },
            sampling=Sampling(seed=0),
            user=body.user,
        )

    async def ranking(self, body: RerankRequest, options: RequestOptions) -> Job:
        """Build the job of a ranking, without accepting it. Its first input is the query. Raises NotFound."""
        return await self._job(
            "rank",
            body.model,
            Kind.EMBEDDING,
            options,
            request={
                "inputs": [body.query, *body.texts],
                "dimensions": None,
                "truncate": body.truncate_prompt_tokens,
                "rank": True,
            },
            sampling=Sampling(seed=0),
            user=body.user,
        )

    async def tokens(self, body: Counted, options: RequestOptions, *, texts: bool = False) -> Job:
        """Build the job of a tokenization, without accepting it. Raises InvalidRequest or NotFound."""
        request: dict[str, Any] = {"special": body.add_special_tokens, "texts": texts}
        if body.messages is None:
            request["prompt"] = body.prompt
        else:
            request |= _conversation(body.messages, tools_request(body.tools, None, None), body.chat_template_kwargs)
        return await self._job("tok", body.model, Kind.TOKENS, options, request=request, sampling=Sampling(seed=0))

    async def text_of(self, body: DetokenizeRequest, options: RequestOptions) -> Job:
        """Build the job of a detokenization, without accepting it. Raises NotFound."""
        request = {"tokens": body.tokens}
        return await self._job("tok", body.model, Kind.TOKENS, options, request=request, sampling=Sampling(seed=0))

    async def _job(
        self, prefix: str, model: str, kind: Kind, options: RequestOptions, *, tier: str | None = None, **fields: Any
    ) -> Job:
        known = await self._require_model(model, options.caller)
        settings = self._settings
        priority = self.priority(options, tier)
        job = Job(
            id=f"{prefix}-{secrets.token_hex(16)}",
            model=model,
            kind=kind,
            created_ms=int(self._clock() * 1000),
            queue_deadline_ms=int(1000 * (options.queue_deadline_s or settings.queue_deadline(priority))),
            run_deadline_ms=int(1000 * (options.run_deadline_s or settings.run_deadline(priority))),
            priority=priority,
            tenant=options.caller.tenant,
            weight=options.caller.key.weight if options.caller.key else self._weights.get(options.caller.tenant, 1.0),
            grace_ms=self._grace_ms(options),
            **fields,
        )
        _require_room(job, known)
        return job

    def _salt(self, asked: str | None, options: RequestOptions) -> str:
        """Return the job's cache salt. Tenants do not share the prefix cache: the number of cached tokens, and how soon
        an answer begins, would reveal one tenant's prompts to another. Tenant names contain no slash."""
        return asked or "" if self._settings.prefix_cache_shared else f"{options.caller.tenant}/{asked or ''}"

    def priority(self, options: RequestOptions, tier: str | None) -> Priority:
        """Return the requested class, but none above the key's own."""
        asked = options.priority or TIERS.get(tier or "")
        if (key := options.caller.key) is None:
            return asked or Priority(self._settings.default_priority)
        return max(asked or key.priority, key.priority, key=lambda priority: priority.rank)

    def _grace_ms(self, options: RequestOptions) -> int | None:
        """Return how long the job outlives its readers: a client that may retry gets time to do so."""
        usual = self._settings.idempotent_grace_s if options.idempotency else self._settings.grace_s
        seconds = usual if options.grace_s is None else options.grace_s
        return None if math.isinf(seconds) else int(seconds * 1000)

    def _sampling(self, body: GenerationRequest, *, n: int, max_tokens: int | None, logprobs: int | None) -> Sampling:
        if n > self._settings.choices_max:
            param = "n" if n == body.n else "best_of"
            raise InvalidRequest(f"'{param}' must be at most {self._settings.choices_max}.", param=param)
        if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
            raise InvalidRequest(f"'min_tokens' must not exceed the limit of {max_tokens} tokens.", param="min_tokens")
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return Sampling(
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            seeded=body.seed is not None,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k is None else max(body.top_k, 0),
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0,
            frequency_penalty=body.frequency_penalty or 0,
            logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
            max_tokens=max_tokens,
            min_tokens=body.min_tokens or 0,
            ignore_eos=bool(body.ignore_eos),
            stop=tuple(stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            n=n,
            logprobs=logprobs,
            grammar=_grammar(body),
        )

    async def _require_model(self, name: str, caller: Caller) -> ModelInfo:
        """Return the model's record, or the last known one for a moment, since a Redis that was emptied forgets it."""
        require_use(caller, name)
        now = self._clock()
        until, known = self._known.get(name, (-math.inf, None))
        if known and until >= now:
            return known
        try:
            found = await self._model_registry.model(name)
        except NotFound:
            if known is None or now > until + MISSED_FOR_S:
                raise
            return known
        self._known[name] = now + KNOWN_FOR_S, found
        return found


def _require_room(job: Job, model: ModelInfo) -> None:
    """Raise ContextLengthExceeded for a prompt that cannot fit however it is tokenised, so that no worker sees it."""
    if job.kind is Kind.CHAT:
        param, prompts = "messages", ["".join(message["content"] or "" for message in job.request["messages"])]
    else:
        param, prompts = "prompt", job.request.get("prompts", [])
    for prompt in prompts:
        most = model.prompt_chars_max if isinstance(prompt, str) else model.context_length
        if most and len(prompt) > most:
            unit = "characters, which are more" if isinstance(prompt, str) else "tokens"
            raise ContextLengthExceeded(
                f"This model's maximum context length is {model.context_length} tokens. However, your {param} of "
                f"{len(prompt)} {unit}. Please reduce the length of the {param}.",
                param=param,
            )


def _grammar(body: GenerationRequest) -> Grammar | None:
    """Return the requested form of the answer. JSON without a schema is an object, as OpenAI defines it."""
    form = body.response_format
    if form and form.type != "text":
        schema = json.dumps((form.json_schema and form.json_schema.schema_) or ANY_OBJECT)
        return Grammar(kind=GrammarKind.JSON_SCHEMA, text=schema, param="response_format")
    if (wanted := body.structured_outputs) is None:
        return None
    if wanted.json_ is not None:
        schema = wanted.json_ if isinstance(wanted.json_, str) else json.dumps(wanted.json_)
        return Grammar(kind=GrammarKind.JSON_SCHEMA, text=schema, param="structured_outputs.json")
    if wanted.regex is not None:
        return Grammar(kind=GrammarKind.REGEX, text=wanted.regex, param="structured_outputs.regex")
    if wanted.choice is not None:
        rule = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in wanted.choice)
        return Grammar(kind=GrammarKind.LARK, text=rule, param="structured_outputs.choice")
    return Grammar(kind=GrammarKind.LARK, text=wanted.grammar or "", param="structured_outputs.grammar")


def _conversation(
    messages: Sequence[Message],
    tools: dict[str, Any],
    template: dict[str, Any] | None,
    effort: str | None = None,
) -> dict[str, Any]:
    """Build a chat's `Job.request` from the parameters that were given."""
    about = {"template": template, "effort": effort}
    given = {name: value for name, value in about.items() if value}
    return {"messages": [_message(message) for message in messages], **tools, **given}


def _message(message: Message) -> dict[str, Any]:
    """Write a message for the chat template. Templates know no developer role, which OpenAI defines as the system role
    of newer models.
    """
    role = "system" if message.role == "developer" else message.role
    kept = message.model_dump(include={"name", "reasoning_content", "tool_calls", "tool_call_id"}, exclude_none=True)
    return {"role": role, "content": message.text, **kept}
