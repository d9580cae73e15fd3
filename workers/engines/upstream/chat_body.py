"""A chat becomes the body of `POST /chat/completions`, as each provider takes it. Pure."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from shared.domain.errors import InvalidRequest
from shared.domain.job import GrammarKind, Sampling
from shared.domain.suitability import FORMS
from workers.engines.upstream.providers import Provider
from workers.source import ChatRequest, CompletionRequest, Said

STOPS_MAX = 4  # OpenAI takes no more; an answer is cut at the others here
ANY_OBJECT = {"type": "object"}
NO_EXTRA: Mapping[str, Any] = {}


def chat_body(request: ChatRequest, provider: Provider, model: str, said: Said) -> dict[str, Any]:
    """The body of a streamed chat that continues `said`. Raises InvalidRequest, which names the parameter, for what the
    provider does not take."""
    body: dict[str, Any] = {
        **request.extra,
        "model": model,
        "messages": [*request.messages, *_begun(provider, said)],
        **sampling_fields(request.sampling, provider, said, request.extra),
        **_tools(request, provider),
        **_form(request, provider),
    }
    if request.reasoning_effort:
        body["reasoning_effort"] = request.reasoning_effort
    if request.template:
        body["chat_template_kwargs"] = dict(request.template)
    if said.text and provider.continues:
        body |= dict.fromkeys(provider.continues, True) | {"add_generation_prompt": False}
    return body | streamed(request.cache_salt, provider)


def completion_body(request: CompletionRequest, provider: Provider, model: str, said: Said) -> dict[str, Any]:
    """The body of `POST /completions` for a text, which is continued by a longer prompt."""
    body = {
        **request.extra,
        "model": model,
        "prompt": request.prompt + said.text if isinstance(request.prompt, str) else request.prompt,
        **sampling_fields(request.sampling, provider, said, request.extra),
    }
    if "logprobs" in body:
        body["logprobs"] = body.pop("top_logprobs", 0)
    if (grammar := request.sampling.grammar) and not FORMS & request.extra.keys():
        body |= _constraint(grammar.kind, grammar.text, grammar.param, provider)
    return body | streamed(request.cache_salt, provider)


def streamed(salt: str, provider: Provider) -> dict[str, Any]:
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if provider.asks_usage else {}
    return {"stream": True, **usage} | ({"cache_salt": salted(salt)} if salt and provider.salts else {})


def salted(salt: str) -> str:
    """The job's salt as servers take one: vLLM allows no slash in it, and at most 128 characters."""
    return sha256(salt.encode()).hexdigest()


def sampling_fields(
    sampling: Sampling, provider: Provider, said: Said, extra: Mapping[str, Any] = NO_EXTRA
) -> dict[str, Any]:
    """The sampling parameters that the client gave, by the provider's names, but for those that `extra` has as they
    were sent."""
    _require_sent(sampling, extra)
    given: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "max_tokens": _budget(sampling.max_tokens, said),
        "min_tokens": sampling.min_tokens or None,
        "ignore_eos": sampling.ignore_eos or None,
        "stop": list(sampling.stop[:STOPS_MAX]) or None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "seed": sampling.seed if sampling.seeded else None,
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs or None,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    for name in provider.lacks & fields.keys():
        raise InvalidRequest(f"The parameter '{name}' is not supported by this model's provider.", param=name)
    for name, own in provider.names:
        if name in fields:
            fields[own] = fields.pop(name)
    return fields


def _require_sent(sampling: Sampling, extra: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a parameter that only a server which takes further ones may understand."""
    asked = {
        "include_stop_str_in_output": sampling.include_stop_str_in_output and "no_stop_trim" not in extra,
        "skip_special_tokens": not sampling.skip_special_tokens,
        "bad_words": sampling.bad_words,
        "allowed_token_ids": sampling.allowed_token_ids,
    }
    for name, wanted in asked.items():
        if wanted and name not in extra:
            raise InvalidRequest(f"The parameter '{name}' is not supported by this model's provider.", param=name)


def _budget(max_tokens: int | None, said: Said) -> int | None:
    return max_tokens and max(1, max_tokens - tokens_of(said))


def tokens_of(said: Said) -> int:
    """Estimate the tokens of what was said, which an upstream tells only at the end: each piece has one at least."""
    return max(said.pieces, len(said.text) // 4)


def _begun(provider: Provider, said: Said) -> list[dict[str, Any]]:
    if not said.text:
        return []
    return [{"role": "assistant", "content": said.text, **dict.fromkeys(provider.marks, True)}]


def _tools(request: ChatRequest, provider: Provider) -> dict[str, Any]:
    if not request.tools:
        return {}
    choice: Any = request.tool_choice
    if choice == "required":
        choice = provider.required
    elif choice != "auto":
        choice = {"type": "function", "function": {"name": choice}}
    if choice != "auto" and not provider.required:
        raise InvalidRequest("'tool_choice' must be 'auto' for this model's provider.", param="tool_choice")
    single = {} if request.parallel_tool_calls else {"parallel_tool_calls": False}
    return {"tools": list(request.tools), "tool_choice": choice, **single}


def _form(request: ChatRequest, provider: Provider) -> dict[str, Any]:
    """The form of the answer: as the client sent it if that came, or the grammar of the job."""
    grammar = request.sampling.grammar
    if grammar is None or FORMS & request.extra.keys():
        return {}
    return _constraint(grammar.kind, grammar.text, grammar.param, provider)


def _constraint(kind: GrammarKind, text: str, param: str, provider: Provider) -> dict[str, Any]:
    if kind is GrammarKind.JSON_SCHEMA and "response_format" not in provider.lacks:
        schema = orjson.loads(text)
        if schema == ANY_OBJECT:
            return {"response_format": {"type": "json_object"}}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    if provider.structured:
        field = {GrammarKind.JSON_SCHEMA: "json", GrammarKind.REGEX: "regex", GrammarKind.LARK: "grammar"}[kind]
        return {"structured_outputs": {field: text}}
    raise InvalidRequest(f"The parameter '{param}' is not supported by this model's provider.", param=param)
