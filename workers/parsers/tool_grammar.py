"""The tools that a chat may call, and the grammars that its answer must keep to because of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.closed_schema import closed_parameters
from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar, GrammarKind
from workers.parsers.lark_grammar import Lark
from workers.parsers.tool_formats import LLAMA, TEXT_GRAMMAR, ToolFormat

AUTO, REQUIRED = "auto", "required"
ANY_OBJECT = {"type": "object"}
GRAMMARS_MAX = 50_000  # characters, each of which may become a hundred


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """`choice` is auto, required, or the name of the tool to call. `parallel` allows several calls in one answer."""

    schemas: Mapping[str, Mapping[str, Any]]
    strict: frozenset[str]
    choice: str
    parallel: bool

    @property
    def forced(self) -> bool:
        return self.choice != AUTO


def tools_of(request: Mapping[str, Any]) -> Tools | None:
    """The tools of a chat; None if it may call none."""
    if not request.get("tools"):
        return None
    functions = [tool["function"] for tool in request["tools"]]
    close = closed_parameters if request.get("closed") else _as_given
    schemas = {function["name"]: close(function.get("parameters")) for function in functions}
    grammars = request.get("tool_grammars") or {}
    if sum(map(len, grammars.values())) > GRAMMARS_MAX:
        message = f"'tools': the grammars of custom tools must not have more than {GRAMMARS_MAX} characters together."
        raise InvalidRequest(message, param="tools")
    return Tools(
        schemas={name: _with_grammar(schema, grammars.get(name)) for name, schema in schemas.items()},
        strict=frozenset(function["name"] for function in functions if function.get("strict")),
        choice=request["tool_choice"],
        parallel=request["parallel"],
    )


def _as_given(schema: dict[str, Any] | None) -> dict[str, Any]:
    """The schema for an answer that a release before 0.3 has begun, which closed none."""
    return schema or ANY_OBJECT


def _with_grammar(schema: Mapping[str, Any], grammar: str | None) -> Mapping[str, Any]:
    """The schema of a tool whose only argument is a text, with that text's grammar."""
    if grammar is None:
        return schema
    texts = {name: {"type": "string", TEXT_GRAMMAR: grammar} for name in schema.get("properties", {})}
    return {**schema, "properties": texts}


def grammar_for(
    tools: Tools, tool_format: ToolFormat, wanted: Grammar | None, token_of: Callable[[str], int | None]
) -> Grammar | None:
    """The grammar of the answer. If a call is required: calls. If the request `wanted` a form for its text: calls or
    that. Otherwise: any text, and calls that keep to the strict schemas. Raises InvalidRequest for a form that cannot
    be combined with tools."""
    lark = Lark(tool_format.marks, token_of)
    if tools.forced:
        start = _calls(lark, tools, tool_format)
    elif wanted is not None:
        if wanted.kind is not GrammarKind.JSON_SCHEMA:
            raise InvalidRequest(f"'{wanted.param}' cannot be combined with 'tools'.", param=wanted.param)
        start = f"{lark.json(json.loads(wanted.text))} | {_calls(lark, tools, tool_format)}"
    elif not tools.strict:
        return None
    elif tool_format is LLAMA:
        start = f"{_calls(lark, tools, tool_format)} | /[^{{](.|\\n)*/"
    else:
        start = f"({_calls(lark, tools, tool_format, after_text=True)})? TEXT"
    return Grammar(kind=GrammarKind.LARK, text=lark.grammar(start), param="tools")


def _calls(lark: Lark, tools: Tools, tool_format: ToolFormat, *, after_text: bool = False) -> str:
    """A rule for one or more calls. After text, the mark of the first call ends the text."""
    before, between, after = tool_format.frame
    begun = tool_format.marks[0] if after_text else ""
    several = f"({lark.literal(between)} {_call(lark, tools, tool_format, '')})*" if tools.parallel else ""
    if after_text and before:
        first = f"{lark.until(begun)} {lark.literal(before.removeprefix(begun))} {_call(lark, tools, tool_format, '')}"
    elif after_text:
        first = f"{lark.until(begun)} {_call(lark, tools, tool_format, begun)}"
    else:
        first = f"{lark.literal(before)} {_call(lark, tools, tool_format, '')}"
    return lark.rule(f"{first} {several} {lark.literal(after)}")


def _call(lark: Lark, tools: Tools, tool_format: ToolFormat, begun: str) -> str:
    """A rule for a call of any tool that may be called."""
    rules = []
    for name, schema in tools.schemas.items():
        if tools.choice in (AUTO, REQUIRED, name):
            bound = schema if tools.forced or name in tools.strict else ANY_OBJECT
            rules.append(tool_format.write(lark, name, bound, begun))
    return lark.rule(" | ".join(rules))
