"""Calls of custom tools, namespaces and the local shell: functions for the model, items of their own for the client."""

import json
from typing import Any

import pytest

from api.formats.response import ResponseBuilder
from api.formats.response_calls import chat_functions, chat_name
from api.formats.sealed import seal, unseal
from shared.domain.errors import InvalidRequest
from shared.domain.events import CallPart, Completed, Delta, Finished, FinishReason, Usage

PATCH = {"type": "custom", "name": "apply_patch", "description": "Patch files.", "format": None}
MCP = {
    "type": "namespace",
    "name": "mcp__files__",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read"}],
}
SHELL = {"type": "local_shell"}


def built(name: str, arguments: list[str], *tools: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the events of a response that calls a tool once, and its item."""
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=1, tools=tools)
    events = builder.apply(_delta(CallPart(0, "call_1", name, "")))
    for part in arguments:
        events += builder.apply(_delta(CallPart(0, "", "", part)))
    outcome = Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))
    events += builder.apply(_delta(reason=FinishReason.TOOL_CALLS))
    events += builder.apply(Finished(seq=9, outcome=outcome, ended_ms=7_900))
    (item,) = builder.body()["output"]
    return events, item


def _delta(*parts: CallPart, reason: FinishReason | None = None) -> Delta:
    return Delta(seq=1, choice=0, text="", token_ids=(1,), calls=parts, finish_reason=reason)


TEXT = 'a "b"\n\\ü 🎉 \ud83c'
WRITTEN = json.dumps({"input": TEXT})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(WRITTEN)])
def test_the_text_of_a_custom_tool_grows_as_it_is_written(size: int) -> None:
    parts = [WRITTEN[at : at + size] for at in range(0, len(WRITTEN), size)]

    events, item = built("apply_patch", parts, PATCH)

    expected = TEXT.replace("\ud83c", "\ufffd")
    assert item["input"] == expected
    assert (item["type"], item["name"], item["call_id"], item["status"]) == (
        "custom_tool_call",
        "apply_patch",
        "call_1",
        "completed",
    )
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == expected
    (done,) = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
    assert (done["input"], done["item_id"]) == (expected, item["id"])


def test_other_arguments_of_a_custom_tool_are_its_input_as_they_are() -> None:
    events, item = built("apply_patch", ['{"patch": ', '"x"}'], PATCH)

    assert item["input"] == '{"patch": "x"}'
    assert [event["delta"] for event in events if event["type"].endswith("input.delta")] == ['{"patch": "x"}']


def test_a_call_within_a_namespace_names_both() -> None:
    name = chat_functions([MCP])[0]["function"]["name"]

    _, item = built(name, ["{}"], MCP)

    assert name == "mcp__files__read"
    assert (item["type"], item["name"], item["namespace"]) == ("function_call", "read", "mcp__files__")


def test_a_long_name_within_a_namespace_is_shortened_to_one_of_its_own() -> None:
    one, other = (chat_name(name, "n" * 60) for name in ("read_file", "read_folder"))

    assert len(one) == len(other) == 64
    assert one != other


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"command": ["ls", "-l"], "timeout_ms": 5}', {"command": ["ls", "-l"], "timeout_ms": 5}),
        ('{"command": ["ls"', {"command": []}),
    ],
)
def test_a_call_of_the_local_shell_has_its_command(arguments: str, action: dict[str, Any]) -> None:
    _, item = built("local_shell", [arguments], SHELL)

    assert item["action"] == {"type": "exec", "env": {}, **action}
    assert (item["type"], item["call_id"]) == ("local_shell_call", "call_1")


def test_a_completed_response_says_when() -> None:
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=5)
    assert builder.body()["completed_at"] is None

    outcome = Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))
    builder.apply(Finished(seq=1, outcome=outcome, ended_ms=7_900))

    assert builder.body()["completed_at"] == 7


def test_reasoning_comes_back_in_a_form_that_only_this_api_reads() -> None:
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=5, sealed=True)
    builder.apply(Delta(seq=1, choice=0, text="", token_ids=(1,), reasoning="Hm, é."))
    builder.apply(Delta(seq=2, choice=0, text="Yes", token_ids=(2,)))

    reasoning, _ = builder.body()["output"]

    assert unseal(reasoning["encrypted_content"], param="x") == "Hm, é."


def test_a_summary_becomes_the_item_of_a_compaction() -> None:
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=5, compacts=True)
    events = builder.apply(Delta(seq=1, choice=0, text="It went", token_ids=(1,), reasoning="Hm."))
    events += builder.apply(Delta(seq=2, choice=0, text=" well.\n", token_ids=(2,)))
    events += builder.apply(Finished(seq=3, outcome=Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))))

    reasoning, compaction = builder.body()["output"]

    assert (reasoning["type"], compaction["type"]) == ("reasoning", "compaction")
    assert unseal(compaction["encrypted_content"], param="x") == "It went well."
    (done,) = [each for each in events if each["type"] == "response.output_item.done" and each["output_index"] == 1]
    assert done["item"] == compaction


@pytest.mark.parametrize(
    "wrong", ["gAAAA", "penstock1.", "penstock1.!", seal("a" * 5_000_000)], ids=lambda text: text[:12]
)
def test_a_form_that_is_not_ours_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        unseal(wrong, param="input.encrypted_content")

    assert refused.value.param == "input.encrypted_content"
