"""The chat that a request of the Messages API asks for: its blocks as messages, and its tools as functions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from api.formats.sealed import MARK, Unsealer
from api.schemas.chat import ChatCompletionRequest
from api.schemas.message_blocks import (
    AnthropicTool,
    Base64Source,
    ClientTool,
    ContentSource,
    DocumentBlock,
    ImageBlock,
    MessageBlock,
    MessageParam,
    PlainTextSource,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from api.schemas.messages import AnyToolChoice, CountTokensRequest, MessagesRequest, NamedToolChoice
from api.serving.other_chats import refuse_hosted, said_of_absent, valid_chat
from shared.settings import Settings

Json = dict[str, Any]
BETWEEN = "\n\n"  # blocks of text
REMINDER = "<system-reminder>\n{}\n</system-reminder>"  # the form that Claude Code has for it
BILLING = "x-anthropic-billing-header:"


def chat_of_message(body: CountTokensRequest, settings: Settings) -> ChatCompletionRequest:
    """Translate the request into a chat. Raises InvalidRequest."""
    choice = body.tool_choice
    wanted = {
        "model": body.model,
        "messages": _messages(body, settings),
        "tools": [_function(tool) for tool in body.tools or () if isinstance(tool, ClientTool)] or None,
        "tool_choice": _choice(body),
        "parallel_tool_calls": False if getattr(choice, "disable_parallel_tool_use", None) else None,
        "reasoning_effort": body.output_config.effort if body.output_config else None,
        "response_format": _format(body),
        **(_answered_so(body) if isinstance(body, MessagesRequest) else {}),
    }
    return valid_chat(wanted)


def _answered_so(body: MessagesRequest) -> Json:
    """Return the parameters of the answer."""
    return {
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences or None,
        "user": body.metadata.user_id if body.metadata else None,
        "stream": bool(body.stream),
    }


def thinking_of(body: CountTokensRequest) -> Json:
    """Return what the job's request says of reasoning. Without `thinking` it is empty, and asks for none."""
    return body.thinking.model_dump(exclude_none=True) if body.thinking else {}


def _messages(body: CountTokensRequest, settings: Settings) -> list[Json]:
    said = BETWEEN.join(filter(None, [*_system(body), *_absent(body, settings)]))
    system = [{"role": "system", "content": [_text(said)]}] if said else []
    opened = Unsealer(param="messages.content.signature")
    return _merged([*system, *(each for message in body.messages for each in _chat_messages(message, opened))])


def _system(body: CountTokensRequest) -> Iterator[str]:
    if isinstance(body.system, str):
        yield body.system
        return
    yield from (block.text for block in body.system or () if not block.text.startswith(BILLING))


def _absent(body: CountTokensRequest, settings: Settings) -> list[str]:
    """Return what the model is told of tools that would run on a server. Raises InvalidRequest if the setting refuses
    them."""
    found = list(dict.fromkeys(tool.type for tool in body.tools or () if isinstance(tool, AnthropicTool)))
    refuse_hosted(found, settings)
    return said_of_absent(found)


def _merged(messages: Iterable[Json]) -> list[Json]:
    """Join messages of the user that follow each other, since the Messages API takes them as one, and write each
    message's content as a chat has it. Many chat templates refuse a system message behind the first one: it becomes a
    part of the user's."""
    merged: list[Json] = []
    for message in messages:
        if merged and message["role"] == "system":
            message = {"role": "user", "content": [_text(REMINDER.format(_content(message["content"])))]}
        if merged and message["role"] == "user" == merged[-1]["role"]:
            merged[-1]["content"] += message["content"]
        else:
            merged.append(message)
    return [message | {"content": _content(message["content"])} for message in merged]


def _chat_messages(message: MessageParam, opened: Unsealer) -> Iterator[Json]:
    """Yield the chat's messages of one: each result of a tool is a message of its own. Their content is in parts."""
    blocks = message.content
    if isinstance(blocks, str):
        blocks = [TextBlock.model_validate({"type": "text", "text": blocks})]
    match message.role:
        case "assistant":
            yield _answer(blocks, opened)
        case "system":
            yield {"role": "system", "content": _parts(blocks)}
        case "user":
            yield from _said_by_user(blocks)


def _said_by_user(blocks: Sequence[MessageBlock]) -> Iterator[Json]:
    parts: list[Json] = []
    for block in blocks:
        if not isinstance(block, ToolResultBlock):
            parts += _parts([block])
            continue
        if parts:
            yield {"role": "user", "content": parts}
            parts = []
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
    if parts or not blocks:
        yield {"role": "user", "content": parts}


def _answer(blocks: Sequence[MessageBlock], opened: Unsealer) -> Json:
    texts = [_text(block.text) for block in blocks if isinstance(block, TextBlock)]
    reasoning = "".join(_reasoned(block, opened) for block in blocks if isinstance(block, ThinkingBlock))
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    said: Json = {"role": "assistant", "content": None if calls and not texts else texts}
    return said | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def _reasoned(block: ThinkingBlock, opened: Unsealer) -> str:
    """Return the reasoning of an earlier answer: its text, or what the signature of ours holds instead."""
    if block.thinking or not block.signature.startswith(MARK) or block.signature == MARK:
        return block.thinking
    return opened.text(block.signature)


def _call(block: ToolUseBlock) -> Json:
    arguments = orjson.dumps(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _result(block: ToolResultBlock) -> list[Json]:
    content = block.content
    parts = [_text(content)] if isinstance(content, str) else _parts(content or ())
    return [_text("Error: " + BETWEEN.join(_texts(parts))), *_others(parts)] if block.is_error else parts


def _content(parts: Sequence[Json] | None) -> str | list[Json] | None:
    """Return a message's content: a text, unless there is something else in it."""
    if parts is None:
        return None
    return list(parts) if _others(parts) else BETWEEN.join(_texts(parts))


def _texts(parts: Iterable[Json]) -> list[str]:
    return [part["text"] for part in parts if part["type"] == "text"]


def _others(parts: Iterable[Json]) -> list[Json]:
    return [part for part in parts if part["type"] != "text"]


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _parts(blocks: Iterable[MessageBlock | ResultBlock]) -> list[Json]:
    """Return the parts of a chat's content for these blocks."""
    parts: list[Json] = []
    for block in blocks:
        match block:
            case TextBlock(text=text):
                parts.append(_text(text))
            case ImageBlock(source=source):
                url = _data_url(source) if isinstance(source, Base64Source) else source.url
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case DocumentBlock():
                parts += _document(block)
            case SearchResultBlock(source=where, title=title, content=content):
                parts += [_text(f"{title}\n{where}"), *_parts(content)]
            case ToolReferenceBlock(tool_name=name):
                parts.append(_text(f"The tool {name} may be called."))
    return parts


def _document(block: DocumentBlock) -> list[Json]:
    about = [_text(said) for said in (block.title, block.context) if said]
    match block.source:
        case Base64Source() as source:
            named = {"filename": block.title} if block.title else {}
            return [*about, {"type": "file", "file": {"file_data": _data_url(source), **named}}]
        case ContentSource(content=list(blocks)):
            return [*about, *_parts(blocks)]
        case PlainTextSource(data=text) | ContentSource(content=str(text)):
            return [*about, _text(text)]
    return about


def _data_url(source: Base64Source) -> str:
    return f"data:{source.media_type};base64,{source.data}"


def _function(tool: ClientTool) -> Json:
    about = {"description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    given = {name: value for name, value in about.items() if value is not None}
    return {"type": "function", "function": {"name": tool.name, **given}}


def _choice(body: CountTokensRequest) -> Any:
    match body.tool_choice:
        case None:
            return None
        case AnyToolChoice(type=kind):
            return {"auto": "auto", "any": "required"}[kind]
        case NamedToolChoice(name=name):
            return {"type": "function", "function": {"name": name}}
        case _:
            return "none"


def _format(body: CountTokensRequest) -> Json | None:
    if (form := body.form) is None:
        return None
    return {"type": "json_schema", "json_schema": {"schema": form.schema_}}
