"""Tool formats: the common forms in which models write tool calls and reasoning. A model's own chat template shows
which it was taught."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from workers.parsers.json_lark import within_json
from workers.parsers.lark_grammar import Lark
from workers.parsers.tool_calls import JsonCalls, MakeReader, TaggedCalls, Tags

Schema = Mapping[str, Any]
TEXT_GRAMMAR = "x-lark"  # the keyword for the Lark grammar of a string
CLOSING = '"}'
WriteCall = Callable[[Lark, str, Schema, str], str]


class Thinking(NamedTuple):
    """The tokens around a model's reasoning."""

    opening: str
    closing: str


THINKING = (Thinking("<think>", "</think>"), Thinking("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """`sign` is a text that only templates of this form hold. `opening` and `closing` are patterns around a region of
    calls, which goes on to the end without a closing one. `marks` are tokens of their own in most vocabularies; calls
    begin with the first. `write` makes a grammar's rule for a call of this name and schema, without the part that
    `begun` holds already; `frame` is written before, between and after several calls."""

    sign: str
    opening: str
    closing: str
    reader: MakeReader
    write: WriteCall
    frame: tuple[str, str, str]
    marks: tuple[str, ...]


def tool_format_of(template: str) -> ToolFormat | None:
    """The form that a template teaches; None if it teaches none known here."""
    return next((tool_format for tool_format in TOOL_FORMATS if tool_format.sign in template), None)


def thinking_of(template: str, token_of: Callable[[str], int | None]) -> Thinking | None:
    """The marks of a model's reasoning; None if its template or vocabulary has none."""
    for thinking in THINKING:
        if thinking.closing in template and all(token_of(mark) is not None for mark in thinking):
            return thinking
    return None


def _json_call(arguments: str, opening: str = "", closing: str = "") -> WriteCall:
    def write(lark: Lark, name: str, schema: Schema, begun: str) -> str:
        before = f'{opening}{{"name": {json.dumps(name)}, "{arguments}": '
        return f"{lark.literal(before.removeprefix(begun))} {_arguments(lark, schema)} {lark.literal('}' + closing)}"

    return write


def _bare_call(lark: Lark, name: str, schema: Schema, begun: str) -> str:
    return f"{lark.literal(f'[TOOL_CALLS]{name}[ARGS]'.removeprefix(begun))} {_arguments(lark, schema)}"


def _arguments(lark: Lark, schema: Schema) -> str:
    """Arguments as JSON. Where the only one is a text of a grammar, that holds within its quotation marks."""
    properties = schema.get("properties", {})
    if len(properties) == 1:
        ((name, wanted),) = properties.items()
        if isinstance(wanted, Mapping) and TEXT_GRAMMAR in wanted:
            opening = "{" + json.dumps(name) + ': "'
            return f"{lark.literal(opening)} {lark.nested(within_json(wanted[TEXT_GRAMMAR]))} {lark.literal(CLOSING)}"
    return lark.json(schema)


def _tagged_call(opening: str, argument: str, ending: str, closing: str) -> WriteCall:
    """A grammar rule for a call in tags. `opening` holds `{}` for the name, `argument` for the key."""

    def write(lark: Lark, name: str, schema: Schema, begun: str) -> str:
        parts = [lark.literal(opening.format(name).removeprefix(begun))]
        for key, wanted in schema.get("properties", {}).items():
            pair = f"{lark.literal(argument.format(key))} {_value(lark, wanted, ending)} {lark.literal(NEWLINE)}"
            parts.append(pair if key in schema.get("required", ()) else f"({pair})?")
        return " ".join([*parts, lark.literal(closing)])

    return write


def _value(lark: Lark, wanted: Any, ending: str) -> str:
    """A value between tags: a string without quotes, everything else as JSON."""
    schema = wanted if isinstance(wanted, dict) else {}
    if TEXT_GRAMMAR in schema:
        return f"{lark.nested(schema[TEXT_GRAMMAR])} {lark.literal(ending)}"
    options = schema.get("enum", ())
    if options and all(isinstance(option, str) for option in options):
        return f"({' | '.join(map(lark.literal, options))}) {lark.literal(ending)}"
    if schema.get("type") == "string":
        return lark.until(ending, schema)
    return f"{lark.json(schema)} {lark.literal(ending)}"


NEWLINE = "\n"
GLM = ToolFormat(
    sign="<arg_key>",
    opening=r"\s*<tool_call>\s*",
    closing=r"\s*</tool_call>",
    reader=partial(
        TaggedCalls,
        tags=Tags(
            name=re.compile(r"\s*([^\s<]+)\s*(?=[<\n])"),
            argument=re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
        ),
    ),
    write=_tagged_call("<tool_call>{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>", "</tool_call>"),
    frame=("", NEWLINE, ""),
    marks=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
QWEN_XML = ToolFormat(
    sign="<function=",
    opening=r"\s*<tool_call>\s*",
    closing=r"\s*</tool_call>",
    reader=partial(
        TaggedCalls,
        tags=Tags(
            name=re.compile(r"\s*<function=([^>\n]+)>"),
            argument=re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL),
        ),
    ),
    write=_tagged_call(
        "<tool_call>\n<function={}>\n", "<parameter={}>\n", "\n</parameter>", "</function>\n</tool_call>"
    ),
    frame=("", NEWLINE, ""),
    marks=("<tool_call>", "</tool_call>"),
)
HERMES = ToolFormat(
    sign="<tool_call>",
    opening=r"\s*<tool_call>\s*",
    closing=r"\s*</tool_call>",
    reader=JsonCalls,
    write=_json_call("arguments", "<tool_call>\n", "\n</tool_call>"),
    frame=("", NEWLINE, ""),
    marks=("<tool_call>", "</tool_call>"),
)
MISTRAL = ToolFormat(
    sign="[ARGS]",
    opening=r"\s*\[TOOL_CALLS\]\s*",
    closing=r"\s*(?=\[TOOL_CALLS\])",
    reader=partial(JsonCalls, bare=True),
    write=_bare_call,
    frame=("", "", ""),
    marks=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
)
MISTRAL_LIST = ToolFormat(
    sign="[TOOL_CALLS]",
    opening=r"\s*\[TOOL_CALLS\]\s*",
    closing=r"\s*(?=\[TOOL_CALLS\])",
    reader=partial(JsonCalls, bare=True),
    write=_json_call("arguments"),
    frame=("[TOOL_CALLS][", ", ", "]"),
    marks=("[TOOL_CALLS]",),
)
LLAMA = ToolFormat(
    sign="<|python_tag|>",
    opening=r"\A\s*(?:<\|python_tag\|>\s*)?(?=\{)",
    closing="",
    reader=partial(JsonCalls, known_only=True),
    write=_json_call("parameters"),
    frame=("", "; ", ""),
    marks=("<|python_tag|>",),
)
TOOL_FORMATS = (GLM, QWEN_XML, HERMES, MISTRAL, MISTRAL_LIST, LLAMA)
