"""A chat becomes the body of Anthropic's `POST /v1/messages`. Pure. (platform.claude.com/docs/en/api/messages)"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from shared.domain.errors import InvalidRequest
from shared.domain.job import GrammarKind, Sampling
from workers.engines.upstream.chat_body import sampling_fields
from workers.engines.upstream.providers import Provider
from workers.source import ChatRequest, Said

ANTHROPIC_VERSION = "2023-06-01"
MAX_TOKENS = 4096  # the API wants a number; every model takes this one
NAMES = {"stop": "stop_sequences"}


def messages_body(request: ChatRequest, provider: Provider, model: str, said: Said) -> dict[str, Any]:
    """The body of a streamed chat that continues `said`. A text at the end must not end in spaces: those that it has
    are left out, and MessagesReader expects them again. Raises InvalidRequest."""
    sampling, as_message = request.sampling, request.thinking is not None
    if sampling.grammar and "output_config" not in request.extra and not (as_message and _schema(sampling)):
        raise InvalidRequest(f"'{sampling.grammar.param}' is not supported here.", param=sampling.grammar.param)
    if request.reasoning_effort and not as_message:
        raise InvalidRequest("'reasoning_effort' is not supported here: send 'thinking'.", param="reasoning_effort")
    fields = {
        NAMES.get(name, name): value for name, value in sampling_fields(sampling, provider, said, request.extra).items()
    }
    messages = [each for message in request.messages for each in _message(message)]
    if said.text:
        messages.append({"role": "assistant", "content": said.text.rstrip()})
    system = [_text(message) for message in request.messages if message["role"] in ("system", "developer")]
    return {
        "max_tokens": MAX_TOKENS,
        **{name: value for name, value in request.extra.items() if name != "response_format"},
        "model": model,
        "messages": messages,
        "stream": True,
        **fields,
        **(_as_asked(request) if as_message else {}),
        **({"system": "\n\n".join(system)} if system else {}),
        **_tools(request),
    }


def _as_asked(request: ChatRequest) -> dict[str, Any]:
    """Return how much to think and in which form to answer, as a client of the Messages API asked for it."""
    effort = {"effort": request.reasoning_effort} if request.reasoning_effort else {}
    config = effort | _schema(request.sampling)
    thinking = {"thinking": dict(request.thinking)} if request.thinking else {}
    return thinking | ({"output_config": config} if config else {})


def _schema(sampling: Sampling) -> dict[str, Any]:
    if sampling.grammar is None or sampling.grammar.kind is not GrammarKind.JSON_SCHEMA:
        return {}
    return {"format": {"type": "json_schema", "schema": orjson.loads(sampling.grammar.text)}}


def _message(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    role = message["role"]
    if role in ("system", "developer"):
        return
    if role == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"] or ""}
        yield {"role": "user", "content": [result]}
        return
    blocks = list(_blocks(message.get("content") or ""))
    blocks += map(_tool_use, message.get("tool_calls") or ())
    if blocks:
        yield {"role": role, "content": blocks}


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        match part:
            case {"type": "text", "text": text}:
                if text:  # the API refuses an empty one
                    yield {"type": "text", "text": text}
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                yield {"type": "image", "source": _image(url)}
            case {"type": kind}:
                raise InvalidRequest(f"'messages' must not contain '{kind}' here.", param="messages.content")


def _image(url: str) -> dict[str, Any]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "base64", "media_type": kind, "data": data}


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            raise InvalidRequest("The arguments of a tool call are no JSON.", param="messages.tool_calls") from error
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _tools(request: ChatRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = [_tool(tool["function"]) for tool in request.tools]
    kinds = {"auto": {"type": "auto"}, "required": {"type": "any"}}
    choice: dict[str, Any] = dict(kinds.get(request.tool_choice) or {"type": "tool", "name": request.tool_choice})
    if not request.parallel_tool_calls:
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    described = {"description": function["description"]} if function.get("description") else {}
    return {"name": function["name"], **described, "input_schema": function.get("parameters") or {"type": "object"}}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
