"""Parsers read the common forms that models write, whatever the pieces in which they come."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.domain.events import FinishReason
from workers.parsers.output_parser import ParsedDelta
from workers.parsers.template_parser import TemplateParser, response_template
from workers.parsers.tool_calls import CallStarted, JsonCalls
from workers.parsers.tool_formats import (
    GLM,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_XML,
    TOOL_FORMATS,
    Thinking,
    ToolFormat,
)
from workers.parsers.tool_grammar import tools_of

THINK = Thinking("<think>", "</think>")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = ("weather", {"city": "Zürich", "days": 2})
WRITTEN: dict[str, tuple[ToolFormat, str]] = {
    "hermes": (
        HERMES,
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "hermes, keys turned round": (
        HERMES,
        'Let me see.<tool_call>{"arguments": {"city": "Zürich", "days": 2}, "name": "weather"}</tool_call>'
        '<tool_call>{"name": "now", "arguments": "{}", "id": 7}</tool_call>',
    ),
    "qwen3-coder": (
        QWEN_XML,
        "Let me see.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "glm": (
        GLM,
        "Let me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
    ),
    "mistral": (
        MISTRAL,
        'Let me see.[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 2}[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{}',
    ),
    "mistral, older": (
        MISTRAL_LIST,
        'Let me see.[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}, '
        '{"name": "now", "arguments": {}}]',
    ),
    "llama": (
        LLAMA,
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Zürich", "days": 2}}; '
        '{"name": "now", "parameters": {}}',
    ),
}


def reply(
    tool_format: ToolFormat | None, *, thinking: Thinking | None = None, parallel: bool = True, **more: Any
) -> TemplateParser:
    tools = tools_of({"tools": TOOLS, "tool_choice": "auto", "parallel": parallel}) if tool_format else None
    return TemplateParser(
        response_template(thinking, tool_format),
        seed="job 0",
        reader=(lambda: tool_format.reader(tools.schemas)) if tool_format and tools else None,
        parallel=parallel,
        **more,
    )


def pieces(text: str, size: int) -> Iterator[str]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


def read(into: TemplateParser, text: str, size: int) -> list[ParsedDelta]:
    return [*(into.push(piece) for piece in pieces(text, size)), into.push("", FinishReason.STOP)]


def said(parts: list[ParsedDelta]) -> tuple[str, str, list[tuple[str, Any]]]:
    calls: list[list[str]] = []
    for part in (part for each in parts for part in each.calls):
        if part.name:
            assert part.id.startswith("call_")
            assert part.call == len(calls)
            calls.append([part.name, ""])
        calls[part.call][1] += part.arguments
    text, reasoning = ("".join(getattr(each, name) for each in parts) for name in ("text", "reasoning"))
    return text, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("form", WRITTEN)
def test_calls_are_read_in_whatever_pieces_they_come(form: str, size: int) -> None:
    tool_format, text = WRITTEN[form]

    text, reasoning, calls = said(read(reply(tool_format), text, size))

    assert calls == [CALL, ("now", {})]
    assert text == ("" if tool_format is LLAMA else "Let me see.")
    assert reasoning == ""


@pytest.mark.parametrize("form", [form for form in WRITTEN if form != "hermes, keys turned round"])
def test_arguments_are_passed_on_while_they_come(form: str) -> None:
    tool_format, text = WRITTEN[form]

    parts = read(reply(tool_format), text, 1)

    of_first = [part for each in parts for part in each.calls if part.call == 0]
    assert len(of_first) > 2
    assert len(of_first[0].arguments) <= 1


@pytest.mark.parametrize("form", WRITTEN)
def test_with_one_call_allowed_the_answer_ends_with_it(form: str) -> None:
    tool_format, text = WRITTEN[form]
    answer, parts = reply(tool_format, parallel=False), []

    for piece in pieces(text, 1):
        parts.append(answer.push(piece))
        if answer.enough:
            break

    _, _, calls = said([*parts, answer.push("", FinishReason.STOP)])
    assert calls == [CALL]
    assert answer.enough


@pytest.mark.parametrize("tool_format", TOOL_FORMATS, ids=lambda tool_format: tool_format.sign)
def test_text_without_a_call_is_text(tool_format: ToolFormat) -> None:
    text = "One < two, [three], and {four: 5}.\n  def f(): ...\n"

    assert said(read(reply(tool_format), text, 1)) == (text, "", [])


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Bern"}',
        '{"name": "unknown", "parameters": {}}',
        '{"name": "weather"',
        '{"a": [1, 2, {"b": "}"}]} and more',
    ],
)
def test_json_that_is_no_call_is_text(text: str) -> None:
    assert said(read(reply(LLAMA), text, 1)) == (text, "", [])


def test_a_region_that_holds_no_call_is_text() -> None:
    text, _, calls = said(read(reply(HERMES), "<tool_call>no json at all</tool_call>", 1))

    assert (text, calls) == ("no json at all", [])


def test_a_call_that_was_cut_off_keeps_what_has_come() -> None:
    parts = read(reply(HERMES), '<tool_call>\n{"name": "weather", "arguments": {"city": "Zü', 1)

    arguments = "".join(part.arguments for each in parts for part in each.calls)
    assert arguments == '{"city": "Zü'


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_reasoning_is_kept_apart(size: int) -> None:
    text = "<think>\nTwo and two.\nFour.\n</think>\n\nIt is 4.\n"

    answer, thought, _ = said(read(reply(None, thinking=THINK), text, size))

    assert (answer, thought) == ("It is 4.\n", "Two and two.\nFour.")


@pytest.mark.parametrize("size", [1, 1000])
def test_reasoning_that_the_prompt_began_needs_no_mark(size: int) -> None:
    answer = reply(HERMES, thinking=THINK, opened="<think>")
    assert answer.reasoning

    text, thought, calls = said(
        read(answer, 'Hm.</think>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', size)
    )

    assert (text, thought, calls) == ("", "Hm.", [("now", {})])
    assert not answer.reasoning


def test_ids_of_calls_are_the_same_after_a_resume() -> None:
    _, text = WRITTEN["hermes"]

    first, again = (read(reply(HERMES), text, size) for size in (1, 5))

    assert [p.id for each in first for p in each.calls if p.id] == [p.id for each in again for p in each.calls if p.id]


def test_a_model_that_brings_a_response_template_is_read_by_it() -> None:
    template = {
        "start_anchor": "<|turn>model\n",
        "fields": {
            "reasoning_content": {"open": "<|channel>", "close": "<channel|>", "content": "text"},
            "tool_calls": {
                "open_pattern": r"<\|call>(?P<name>\w+)",
                "close": "<call|>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"content": "text"},
        },
    }
    answer = TemplateParser(template, seed="s", tools=TOOLS, prompt="<|turn>user\nhi<|turn>model\n")

    parts = read(answer, '<|channel>Hm.<channel|>So:<|call>weather{"city": "Zürich", "days": 2}<call|>', 1)

    assert said(parts) == ("So:", "Hm.", [CALL])


def test_what_a_response_template_cannot_read_is_text() -> None:
    template = {
        "start_anchor": "\0",
        "fields": {
            "tool_calls": {"open": "<c>", "close": "</c>", "repeats": True, "content": "json"},
            "content": {"content": "text"},
        },
    }

    text, _, calls = said(read(TemplateParser(template, seed="s"), "Look: <c>{broken</c> and more", 1))

    assert calls == []
    assert text == "Look: {broken</c> and more"


def test_a_long_object_is_searched_for_its_end_once() -> None:
    reader, text = JsonCalls({}), '{"arguments": {"a": "' + "x" * 20_000 + '"}, "name": "f"}'

    found = [each for piece in pieces(text, 4) for each in reader.feed(piece)]

    assert found[0] == CallStarted("f")
