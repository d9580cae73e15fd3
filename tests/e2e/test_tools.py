"""Tools by the real client, with a random model under a grammar."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.harness import Stack, standalone_stack
from tests.models import calling_model
from workers.parsers.tool_formats import HERMES

QUESTION: list[Any] = [{"role": "user", "content": "How is the weather in Bern?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Basel"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
MODEL = "caller"


class Weather(BaseModel):
    """Ask for the weather."""

    city: Literal["Bern", "Basel"]
    rain: bool


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("caller")
    calling_model(folder / MODEL, HERMES.sign, HERMES.marks)
    with standalone_stack(folder, str(folder / MODEL)) as stack:
        yield stack


@pytest.fixture
def chats(caller: Stack) -> Any:
    return caller.client().chat.completions


def test_the_model_says_that_it_calls_tools(caller: Stack) -> None:
    assert "tools" in caller.client().models.retrieve(MODEL).model_dump()["capabilities"]


def test_a_whole_answer_calls(chats: Any) -> None:
    answer = chats.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    )

    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert (call.type, call.function.name) == ("function", "weather")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_a_stream_calls_as_a_whole_answer_does(chats: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "temperature": 0, "max_tokens": 400}
    asked["tool_choice"] = {"type": "function", "function": {"name": "weather"}}
    asked["parallel_tool_calls"] = False

    chunks = list(chats.create(**asked, stream=True))

    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [bool(call.id) for call in deltas] == [True] + [False] * (len(deltas) - 1)
    assert len(deltas) > 3
    whole = chats.create(**asked).choices[0]
    assert "".join(call.function.arguments for call in deltas) == whole.message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "tool_calls"


def test_several_choices_call_each(chats: Any) -> None:
    answer = chats.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", n=3, max_tokens=400)

    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(answer.choices) == 3
    assert len(set(ids)) == len(ids) >= 3


def test_the_helpers_of_the_client_parse_what_comes(caller: Stack) -> None:
    parsed = caller.client().chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required"
    )

    calls = parsed.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Weather)


def test_the_stream_helper_collects_the_calls(caller: Stack) -> None:
    with caller.client().chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required"
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Weather)


def test_what_was_called_comes_back_as_it_is(chats: Any) -> None:
    first = chats.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    call = first.choices[0].message.tool_calls[0]
    answered = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "sunny"}]}

    again = chats.create(
        model=MODEL, messages=[*QUESTION, first.choices[0].message, answered], tools=TOOLS, max_tokens=5
    )

    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_only_allowed_tools_are_called(chats: Any) -> None:
    tools = [*TOOLS, {"type": "function", "function": {"name": "other"}}]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}

    answer = chats.create(
        model=MODEL,
        messages=QUESTION,
        tools=tools,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        n=4,
        max_tokens=400,
    )

    called = {call.function.name for choice in answer.choices for call in choice.message.tool_calls}
    assert called == {"weather"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tools": TOOLS * 2}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools.0.function.name"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"tools": TOOLS, "tool_choice": "auto", "reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(caller: Stack, more: dict[str, Any], param: str) -> None:
    answer = caller.post({"model": MODEL, "messages": QUESTION} | more)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
