"""Responses as agents ask for them: tools of several types, items by their ids, and long conversations."""

import re
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Stack, eventually
from tests.e2e.test_tools import WEATHER

MODEL = "caller"


# What https://openresponses.org requires of each response, from the first event on.
REQUIRED = """id object created_at completed_at status incomplete_details model previous_response_id instructions
output error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs
temperature reasoning user usage max_output_tokens max_tool_calls store background service_tier metadata
safety_identifier prompt_cache_key""".split()
NUMBERS = ("created_at", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature")


def test_every_event_has_the_fields_that_open_responses_requires(responses: Any) -> None:
    events = responses.create(model="scripted", input="x", max_output_tokens=3, stream=True)
    queued = responses.create(model="scripted", input="x", max_output_tokens=3, background=True)

    for made in [queued, *[event.response for event in events if hasattr(event, "response")]]:
        sent = made.to_dict()
        assert [name for name in REQUIRED if name not in sent] == []
        assert all(isinstance(sent[name], float | int) for name in NUMBERS)
        assert sent["model"] == "scripted"


def test_a_websocket_is_refused_so_that_codex_asks_by_post_at_once(caller: Stack) -> None:
    ask = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="}
    refused = httpx.get(f"{caller.base}/v1/responses", headers=ask)

    assert (refused.status_code, refused.json()["error"]["code"]) == (426, "websocket_not_served")
    assert httpx.get(f"{caller.base}/v1/responses").status_code == 405


def test_a_response_may_be_a_compaction_that_the_next_one_reads(responses: Any) -> None:
    talk: Any = [{"role": "user", "content": "hello"}, {"type": "compaction_trigger"}]
    *_, last = responses.create(model="scripted", input=talk, max_output_tokens=3, stream=True)

    (compaction,) = last.response.output
    assert compaction.type == "compaction"
    rest: Any = [compaction.to_dict(), {"role": "user", "content": "go on"}]
    assert responses.create(model="scripted", input=rest, max_output_tokens=2).usage.input_tokens > 5


def test_a_failure_names_what_the_client_sent(responses: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "word " * 3000}
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(**asked)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    assert "in the input" in str(refused.value)

    queued = responses.create(**asked, background=True)
    failed = eventually("it fails", lambda: (now := responses.retrieve(queued.id)).status == "failed" and now)
    assert failed.error.code == "context_length_exceeded"


def test_items_are_sent_back_by_their_ids(responses: Any, caller: Stack) -> None:
    first = responses.create(model="scripted", input="one", max_output_tokens=3, temperature=0)
    (mine,) = responses.input_items.list(first.id)
    asked: dict[str, Any] = {"model": "scripted", "max_output_tokens": 3, "temperature": 0}

    by_id: Any = [
        {"type": "item_reference", "id": mine.id},
        {"id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    second = responses.create(**asked, input=by_id)

    assert second.output_text == responses.create(**asked, input="two", previous_response_id=first.id).output_text
    with pytest.raises(openai.NotFoundError):
        caller.client(api_key="another").responses.create(**asked, input=by_id)


def test_a_custom_tool_is_called_with_a_text(responses: Any) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": r"(Bern|Basel) \"[0-9]{2}\""}
    tool = {"type": "custom", "name": "note", "description": "Takes notes.", "format": form}
    asked: dict[str, Any] = {"model": MODEL, "tools": [tool], "parallel_tool_calls": False, "max_output_tokens": 200}
    events = list(responses.create(**asked, input="x", tool_choice={"type": "custom", "name": "note"}, stream=True))

    (call,) = events[-1].response.output
    assert (call.type, call.name) == ("custom_tool_call", "note")
    assert re.fullmatch(form["definition"], call.input)
    assert "".join(each.delta for each in events if each.type == "response.custom_tool_call_input.delta") == call.input
    answer = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "noted"}
    again = responses.create(**asked | {"max_output_tokens": 3}, input=[{"role": "user", "content": "x"}, call, answer])
    assert again.status == "incomplete"


def test_a_tool_within_a_namespace_and_the_local_shell_are_called(responses: Any) -> None:
    inner = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    space = {"type": "namespace", "name": "mcp__sky__", "description": "The sky.", "tools": [inner]}
    asked: dict[str, Any] = {"model": MODEL, "input": "x", "parallel_tool_calls": False, "max_output_tokens": 400}
    choice = {"type": "function", "name": "weather", "namespace": "mcp__sky__"}

    (called,) = responses.create(**asked, tools=[space, {"type": "local_shell"}], tool_choice=choice).output
    (shell,) = responses.create(**asked, tools=[{"type": "local_shell"}], tool_choice={"type": "local_shell"}).output

    assert (called.type, called.name, called.namespace) == ("function_call", "weather", "mcp__sky__")
    assert (shell.type, shell.action.type) == ("local_shell_call", "exec")


def test_the_model_is_told_of_tools_that_are_not_there(responses: Any) -> None:
    asked: dict[str, Any] = {"model": "scripted", "input": "x", "max_output_tokens": 2}
    told = responses.create(**asked, tools=[{"type": "web_search", "search_context_size": "low"}])

    assert told.usage.input_tokens > responses.create(**asked).usage.input_tokens
    assert told.tools[0].to_dict() == {"type": "web_search", "search_context_size": "low"}


def test_the_oldest_items_are_dropped_if_the_request_allows_it(responses: Any) -> None:
    turns = [{"role": role, "content": "word " * 100} for role in ("user", "assistant") * 20]
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": [*turns, {"role": "user", "content": "Hi"}],
        "max_output_tokens": 3,
    }
    with pytest.raises(openai.BadRequestError, match="context length"):
        responses.create(**asked)

    made = responses.create(**asked, truncation="auto")

    assert 200 < made.usage.input_tokens <= 2048 - 3
