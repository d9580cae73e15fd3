"""A response becomes a chat: its items as messages, its tools as functions, and its own names in errors. The bodies in
`recorded` are those of agents, with their texts cut short."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.formats.response_names import as_sent
from api.formats.sealed import seal
from api.schemas.response import ResponseRequest
from api.serving.response_chat import chat_of, require_own_tools, tool_grammars
from api.stores.responses import items_of
from shared.domain.errors import InvalidRequest
from shared.settings import load_settings


def chat(items: list[Any] | str, **more: Any) -> Any:
    body = ResponseRequest.model_validate({"model": "m", "input": items, **more})
    return chat_of(body, items_of(body))


def said(items: list[Any] | str, **more: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in chat(items, **more).messages]


def test_calls_of_every_type_come_back_as_the_model_wrote_them() -> None:
    shell = {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": 5}
    items = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": seal("Hm.")},
        {"type": "function_call", "call_id": "1", "name": "read", "namespace": "mcp__files__", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": 'a "b"'},
        {"type": "local_shell_call", "call_id": "3", "status": "completed", "action": shell},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "one"}]},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "two"},
        {"type": "local_shell_call_output", "id": "3", "output": "three"},
    ]

    user, assistant, *results = said(items)

    assert user == {"role": "user", "content": "x"}
    assert assistant["reasoning_content"] == "Hm."
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in assistant["tool_calls"]]
    assert calls == [
        ("1", "mcp__files__read", "{}"),
        ("2", "patch", '{"input": "a \\"b\\""}'),
        ("3", "local_shell", '{"command": ["ls"], "timeout_ms": 5}'),
    ]
    told = [(result["tool_call_id"], result["content"]) for result in results]
    assert told == [("1", "one"), ("2", "two"), ("3", "three")]


def test_a_reference_that_nobody_has_followed_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="refer") as refused:
        chat([{"type": "item_reference", "id": "msg_1_0"}])

    assert refused.value.param == "input"


def test_what_codex_notes_of_its_items_changes_nothing() -> None:
    noted = {"internal_chat_message_metadata_passthrough": {"turn_id": "1", "content_item_kinds": ["user.text"]}}
    body = ResponseRequest.model_validate({"model": "m", "input": [{"role": "user", "content": "x", **noted}]})

    assert items_of(body) == [{"type": "message", "role": "user", "content": "x"}]


def test_sealed_texts_are_bounded_all_together() -> None:
    item = {"type": "reasoning", "encrypted_content": seal("a" * 1_500_000)}
    assert said([item, item, {"role": "assistant", "content": "y"}])

    with pytest.raises(InvalidRequest) as refused:
        said([item] * 3)

    assert refused.value.param == "input.encrypted_content"


def test_images_and_files_are_passed_on_as_a_chat_has_them() -> None:
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_file", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"},
    ]

    (message,) = said([{"role": "user", "content": parts}])

    assert message["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AA==", "filename": "a.txt"}},
    ]


def test_hosted_tools_are_told_as_absent_or_refused_by_the_setting() -> None:
    tools = [{"type": "web_search"}, {"type": "mcp", "server_label": "x"}, {"type": "web_search"}]
    body = ResponseRequest.model_validate({"model": "m", "input": "x", "instructions": "Be brief.", "tools": tools})

    made = chat_of(body, items_of(body))

    assert "Be brief." in str(made.messages[0].content)
    assert "not available here, whatever is said of them elsewhere: web_search, mcp." in str(made.messages[0].content)
    assert made.tools is None
    require_own_tools(body, items_of(body), load_settings(hosted_tools="tell"))
    with pytest.raises(InvalidRequest, match="web_search") as refused:
        require_own_tools(body, items_of(body), load_settings(hosted_tools="refuse"))
    assert refused.value.param == "tools"


def test_what_shapes_the_answer_is_passed_on_under_the_names_of_a_chat() -> None:
    asked = {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "presence_penalty": 1, "frequency_penalty": 1, "seed": 7}
    made = chat("x", **asked, max_output_tokens=9, chat_template_kwargs={"a": 1})

    assert {name: getattr(made, name) for name in asked} == asked
    assert (made.max_completion_tokens, made.chat_template_kwargs) == (9, {"a": 1})


@pytest.mark.parametrize(
    ("param", "sent"),
    [
        ("messages", "input"),
        ("messages.content", "input.content"),
        ("reasoning_effort", "reasoning.effort"),
        ("x", "x"),
    ],
)
def test_an_error_names_the_field_that_the_client_sent(param: str, sent: str) -> None:
    assert as_sent(f"'{param}' is wrong.", param) == (f"'{sent}' is wrong.", sent)


def test_items_may_add_tools_and_the_default_namespace_changes_no_name() -> None:
    run = {"type": "custom", "name": "exec", "description": "Runs code."}
    sleep = {"type": "function", "name": "sleep", "strict": False, "parameters": {"type": "object", "properties": {}}}
    added = [
        {"type": "namespace", "name": "functions", "description": "", "tools": [run]},
        {"type": "namespace", "name": "clock", "description": "Time.", "tools": [sleep]},
        {"type": "web_search"},
    ]
    items = [{"type": "additional_tools", "role": "developer", "tools": added}, {"role": "user", "content": "x"}]

    made = chat(items)

    assert [tool.function.name for tool in made.tools] == ["exec", "clock__sleep"]
    assert [message.role for message in made.messages] == ["system", "user"]
    assert "web_search" in str(made.messages[0].content)


def test_a_compaction_is_asked_for_without_tools_or_a_form() -> None:
    tool = {"type": "custom", "name": "exec", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}}
    items = [{"role": "user", "content": "x"}, {"type": "compaction_trigger"}]
    form = {"format": {"type": "json_object"}}
    body = ResponseRequest.model_validate(
        {"model": "m", "input": items, "tools": [tool], "tool_choice": "required", "text": form}
    )

    made = chat_of(body, items_of(body))

    assert (made.tools, made.tool_choice, made.response_format, made.max_completion_tokens) == (None, None, None, 2000)
    assert "Summarise" in str(made.messages[-1].content)
    assert tool_grammars(body, items_of(body)) == {}
    with pytest.raises(InvalidRequest, match="last"):
        chat([*reversed(items)])


def test_the_model_is_told_how_long_its_answer_shall_be() -> None:
    assert [message["content"] for message in said("x", text={"verbosity": "low"})] == ["Keep your answers short.", "x"]
    assert len(said("x", text={"verbosity": "medium"})) == 1


def test_reasoning_of_earlier_turns_is_left_out_if_only_that_of_the_current_turn_is_wanted() -> None:
    turn: list[Any] = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "y"},
    ]

    kept = [message.get("reasoning_content") for message in said(turn * 2)]
    current = [message.get("reasoning_content") for message in said(turn * 2, reasoning={"context": "current_turn"})]

    assert (kept, current) == ([None, "Hm."] * 2, [None, None, None, "Hm."])


RECORDED = Path(__file__).parent / "recorded"
AGENTS = {
    "codex_gpt_5_5": ["exec_command", "write_stdin", "request_user_input", "apply_patch"],
    "codex_gpt_6": ["exec", "wait", "request_user_input", "request_user_input_async", "clock__sleep"],
    "opencode": ["bash", "edit", "glob", "grep"],
}


@pytest.mark.parametrize("agent", AGENTS)
def test_what_agents_send_behind_a_call_of_a_tool_is_a_chat(agent: str) -> None:
    recorded = json.loads((RECORDED / f"{agent}.json").read_text())

    made = chat(recorded.pop("input"), **recorded)

    assert [tool.function.name for tool in made.tools][: len(AGENTS[agent])] == AGENTS[agent]
    *_, call, result = made.messages
    assert (call.role, result.role) == ("assistant", "tool")
    assert result.tool_call_id == call.tool_calls[-1].id
    assert call.reasoning_content == ("I think about it." if agent != "opencode" else None)
