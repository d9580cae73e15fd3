"""The chat that a response asks for: its items as messages, and its tools as functions."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from api.formats.compaction import compacts_items
from api.formats.response_calls import LOCAL_SHELL, chat_functions, chat_name, grammars_of, hosted, with_additional
from api.formats.response_names import as_sent
from api.formats.sealed import Unsealer
from api.http.problems import Refused
from api.schemas.chat import ChatCompletionRequest
from api.schemas.response import LOGPROBS, ResponseInput, ResponseRequest
from api.schemas.response_tools import AllowedToolsChoice, LocalShellChoice, NamedTool
from api.serving.other_chats import refuse_hosted, said_of_absent, valid_chat
from shared.domain.errors import InvalidRequest
from shared.domain.job import LENGTHS
from shared.settings import Settings

Json = dict[str, Any]
SUMMARY_TOKENS_MAX = 2000
SUMMARISE = (
    "Summarise the conversation up to here for an assistant that shall go on with it. Of everything but the messages of"
    " the user, it will see nothing but your summary. Tell what was asked for and decided, what was done and found out,"
    " with the names, paths, numbers and results that matter, and what is left to do. Write nothing but the summary."
)
COMPACTED = "A summary of the conversation up to here:\n{}"


def chat_of(body: ResponseInput, items: Sequence[Json]) -> ChatCompletionRequest:
    """Translate the request into a chat. Raises InvalidRequest."""
    compacts = compacts_items(items)
    tools = [] if compacts else _tools(body, items)
    said = "\n\n".join(filter(None, [body.instructions, *_told(body, tools)]))
    system = [{"role": "system", "content": said}] if said else []
    if body.reasoning and body.reasoning.context == "current_turn":
        items = _without_earlier_reasoning(items)
    wanted = {
        "model": body.model,
        "messages": [*system, *_messages(items)],
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "tools": chat_functions(tools) or None,
        "tool_choice": None if compacts else _choice(body),
        "response_format": None if compacts else _format(body),
        "chat_template_kwargs": body.chat_template_kwargs,
        **(_answered_so(body) if isinstance(body, ResponseRequest) else {}),
    }
    if compacts:
        most = wanted.get("max_completion_tokens")
        wanted["max_completion_tokens"] = min(most or SUMMARY_TOKENS_MAX, SUMMARY_TOKENS_MAX)
    return valid_chat(wanted)


def _answered_so(body: ResponseRequest) -> Json:
    """Return the parameters of the answer, which a response calls as a chat does."""
    names = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
    same = (*names, "service_tier", "user", "safety_identifier", "keep_alive")
    likely = body.top_logprobs is not None or LOGPROBS in (body.include or ())
    return {
        **{name: getattr(body, name) for name in same},
        "max_completion_tokens": body.max_output_tokens,
        "stream": bool(body.stream),
        **({"logprobs": True, "top_logprobs": body.top_logprobs or 0} if likely else {}),
    }


@contextmanager
def named_as_sent() -> Iterator[None]:
    """Name the parameter of an error as the client of a response sent it: a worker knows the response as a chat."""
    try:
        yield
    except Refused as refused:
        message, param = as_sent(refused.problem.message, refused.problem.param)
        raise Refused(replace(refused.problem, message=message, param=param)) from refused
    except InvalidRequest as error:
        message, param = as_sent(str(error), error.param)
        raise type(error)(message, param=param) from error


def tool_grammars(body: ResponseInput, items: Sequence[Json]) -> Json:
    """Return the part of the job's request that holds custom tools to their grammars; empty without any."""
    grammars = {} if compacts_items(items) else grammars_of(_tools(body, items))
    return {"tool_grammars": grammars} if grammars else {}


def _tools(body: ResponseInput, items: Sequence[Json]) -> list[Json]:
    return with_additional([tool.model_dump() for tool in body.tools or ()], items)


def require_own_tools(body: ResponseInput, items: Sequence[Json], settings: Settings) -> None:
    """Raise InvalidRequest for a hosted tool, if the setting refuses them."""
    refuse_hosted(hosted(_tools(body, items)), settings)


def _told(body: ResponseInput, tools: Sequence[Json]) -> Iterator[str]:
    """Yield what the model is told of the request beside its instructions."""
    yield from said_of_absent(hosted(tools))
    if body.text and body.text.verbosity in LENGTHS:
        yield LENGTHS[body.text.verbosity]


def _without_earlier_reasoning(items: Sequence[Json]) -> list[Json]:
    """Return the items without the reasoning before the last message of the user."""
    last = max((at for at, item in enumerate(items) if item.get("role") == "user"), default=0)
    return [item for at, item in enumerate(items) if at > last or item["type"] != "reasoning"]


def _messages(items: Sequence[Json]) -> list[Json]:
    """Translate items into chat messages. Calls belong to the assistant's message before them, or begin one; reasoning
    belongs to the message after it."""
    messages: list[Json] = []
    reasoning = ""
    opened = Unsealer(param="input.encrypted_content")
    for item in items:
        match item["type"]:
            case "message":
                said = {"role": item["role"], "content": _content(item["content"])}
                if item["role"] == "assistant" and reasoning:
                    said["reasoning_content"], reasoning = reasoning, ""
                messages.append(said)
            case "function_call" | "custom_tool_call" | "local_shell_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                if reasoning:
                    messages[-1]["reasoning_content"], reasoning = reasoning, ""
                messages[-1].setdefault("tool_calls", []).append(_call(item))
            case "function_call_output" | "custom_tool_call_output" | "local_shell_call_output":
                call_id = item.get("call_id") or item["id"]
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _content(item["output"])})
            case "reasoning":
                reasoning += _reasoned(item, opened)
            case "compaction_trigger" if item is items[-1]:
                messages.append({"role": "user", "content": SUMMARISE})
            case "item_reference":
                raise InvalidRequest("'input' must not refer to other items in a batch.", param="input")
            case "compaction" | "compaction_summary":
                messages.append({"role": "user", "content": COMPACTED.format(opened.text(item["encrypted_content"]))})
    return messages


def _call(item: Json) -> Json:
    """Return a call as the chat's model wrote it."""
    match item["type"]:
        case "custom_tool_call":
            name = chat_name(item["name"], item.get("namespace"))
            arguments = json.dumps({"input": item["input"]}, ensure_ascii=False)
        case "local_shell_call":
            asked = {name: value for name, value in item["action"].items() if name != "type" and value}
            name, arguments = LOCAL_SHELL, json.dumps(asked, ensure_ascii=False)
        case _:
            name, arguments = chat_name(item["name"], item.get("namespace")), item["arguments"]
    return {"id": item["call_id"], "type": "function", "function": {"name": name, "arguments": arguments}}


def _reasoned(item: Json, opened: Unsealer) -> str:
    """Return the reasoning of an earlier answer. The sealed one is the same as that beside it."""
    if content := item.get("content"):
        return "".join(part["text"] for part in content)
    sealed = item.get("encrypted_content")
    return opened.text(sealed) if sealed else ""


def _content(content: str | list[Json]) -> str | list[Json]:
    """Return a message's content: a text, unless there is something else in it."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Json) -> Json:
    match part["type"]:
        case "input_image":
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_file":
            about = {name: part[name] for name in ("file_data", "filename") if part.get(name)}
            return {"type": "file", "file": about}
    return {"type": "text", "text": part.get("text", part.get("refusal", ""))}


def _choice(body: ResponseInput) -> Any:
    match body.tool_choice:
        case AllowedToolsChoice(mode=mode, tools=tools):
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [_named(tool) for tool in tools]}}
        case NamedTool() | LocalShellChoice() as tool:
            return _named(tool)
        case choice:
            return choice


def _named(tool: NamedTool | LocalShellChoice) -> Json:
    name = chat_name(tool.name, tool.namespace) if isinstance(tool, NamedTool) else LOCAL_SHELL
    return {"type": "function", "function": {"name": name}}


def _format(body: ResponseInput) -> Any:
    form = body.text.format if body.text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict, "description": form.description}
    return {"type": "json_schema", "json_schema": {name: value for name, value in schema.items() if value is not None}}
