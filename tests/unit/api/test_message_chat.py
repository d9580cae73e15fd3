"""A request of Anthropic's Messages API becomes a chat; what it cannot become is refused by name."""

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from api.formats.sealed import MARK, TEXT_MAX, seal
from api.schemas.messages import CountTokensRequest, MessagesRequest
from api.serving.message_chat import chat_of_message
from shared.domain.errors import InvalidRequest
from shared.settings import load_settings

BLOCK = {"type": "text", "text": "Hi"}
CACHED = {"cache_control": {"type": "ephemeral"}}
TOOL = {"name": "read", "description": "Reads", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"path": "a"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}


def body(messages: Any = "Hi", **more: Any) -> MessagesRequest:
    listed = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return MessagesRequest.model_validate({"model": "m", "max_tokens": 9, "messages": listed, **more})


def chat(messages: Any = "Hi", **more: Any) -> dict[str, Any]:
    """The chat of a request, without what it leaves open."""
    settings = load_settings()
    return chat_of_message(body(messages, **more), settings).model_dump(exclude_none=True)


def said(*content: Any, role: str = "user") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat([{"role": role, "content": list(content)}])["messages"]
    return found


def test_a_conversation_with_tools_becomes_a_chat() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [BLOCK | CACHED, BLOCK]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
        {"type": "tool_result", "tool_use_id": "toolu_3"},
    ]
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "of another server"}
    redacted = {"type": "redacted_thinking", "data": "xyz"}

    made = chat(
        [
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": [BLOCK]},
            {"role": "assistant", "content": [thought, redacted, BLOCK, USE]},
            {"role": "user", "content": [*results, BLOCK]},
        ],
        system=[{"type": "text", "text": "x-anthropic-billing-header: cch=1"}, BLOCK | CACHED, BLOCK],
        tools=[TOOL | CACHED | {"type": "custom", "strict": True}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )

    arguments = orjson.dumps({"path": "a"}).decode()
    call = {"id": "toolu_1", "type": "function", "function": {"name": "read", "arguments": arguments}}
    assert made["messages"] == [
        {"role": "system", "content": "Hi\n\nHi"},
        {"role": "user", "content": "Hi\n\nHi"},
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Hi\n\nHi"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no"},
        {"role": "tool", "tool_call_id": "toolu_3", "content": ""},
        {"role": "user", "content": "Hi"},
    ]
    function = {"name": "read", "description": "Reads", "parameters": TOOL["input_schema"], "strict": True}
    assert made["tools"] == [{"type": "function", "function": function}]
    assert (made["tool_choice"], made["parallel_tool_calls"]) == ("required", False)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "read"}, {"type": "function", "function": {"name": "read"}}),
    ],
)
def test_the_choice_of_a_tool(choice: dict[str, Any], expected: Any) -> None:
    assert chat(tools=[TOOL], tool_choice=choice)["tool_choice"] == expected


def test_the_parameters_of_the_answer_have_their_own_names() -> None:
    schema = {"type": "object"}
    made = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": schema}},
        stream=True,
        service_tier="standard_only",
    )

    given = {name: made[name] for name in ("temperature", "top_p", "top_k", "stop", "user", "stream", "max_tokens")}
    assert given == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "user": "u",
        "stream": True,
        "max_tokens": 9,
    }
    assert (made["reasoning_effort"], made["response_format"]["json_schema"]["schema_"]) == ("high", schema)
    assert "service_tier" not in made


def test_images_and_documents_become_parts() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}
    text = {"type": "text", "media_type": "text/plain", "data": "A story"}

    (message,) = said(
        {"type": "document", "source": text, "title": "Title", "context": "Old"},
        IMAGE,
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "document", "source": {"type": "content", "content": [BLOCK, IMAGE]}},
        {"type": "document", "source": pdf, "title": "a.pdf"},
    )

    assert [part.get("text") or part[part["type"]] for part in message["content"]] == [
        *("Title", "Old", "A story"),
        {"url": "data:image/png;base64,aaaa"},
        {"url": "https://example.com/a.png"},
        "Hi",
        {"url": "data:image/png;base64,aaaa"},
        "a.pdf",
        {"file_data": "data:application/pdf;base64,aaaa", "filename": "a.pdf"},
    ]


def test_what_a_client_found_by_itself_becomes_text() -> None:
    found = {"type": "search_result", "source": "a.md", "title": "A", "content": [BLOCK]}
    tool = {"type": "tool_reference", "tool_name": "read"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [found, tool]}

    tool_message, message = said(result, found)

    assert message["content"] == "A\na.md\n\nHi"
    assert tool_message["content"] == "A\na.md\n\nHi\n\nThe tool read may be called."


def test_a_system_message_behind_the_first_becomes_a_part_of_the_users() -> None:
    found = chat([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}], system="You help.")

    reminder = "<system-reminder>\nBe brief.\n</system-reminder>"
    assert found["messages"] == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": f"Hi\n\n{reminder}"},
    ]


def test_the_model_is_told_of_tools_that_would_run_on_a_server() -> None:
    made = chat(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, TOOL])

    assert "web_search_20250305" in made["messages"][0]["content"]
    assert len(made["tools"]) == 1


def test_a_setting_refuses_tools_that_would_run_on_a_server() -> None:
    asked = body(tools=[{"type": "web_search_20250305", "name": "web_search"}])

    with pytest.raises(InvalidRequest, match="web_search_20250305"):
        chat_of_message(asked, load_settings(hosted_tools="refuse"))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"colour": "blue"}, "colour"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"tools": [TOOL | {"allowed_callers": ["code_execution_20250825"]}]}, "allowed_callers"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "budget_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "begun answer"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "container_upload"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "a", "input": {}}]}]},
            "use",
        ),
        (
            {
                "output_format": {"type": "json_schema", "schema": {}},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_format",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(more: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidRequest, ValidationError), match=match):
        body(**more) if "messages" not in more else body(more["messages"])


def test_tokens_are_counted_without_a_limit() -> None:
    counted = CountTokensRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})

    assert chat_of_message(counted, load_settings()).max_tokens is None
    with pytest.raises(ValidationError, match="max_tokens"):
        MessagesRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"thinking": "Hm.", "signature": "of another server"}, "Hm."),
        ({"thinking": "", "signature": seal("Hm.")}, "Hm."),
        ({"thinking": "Hm.", "signature": MARK}, "Hm."),
        ({"thinking": "", "signature": "of another server"}, None),
        ({"thinking": "", "signature": MARK}, None),
    ],
)
def test_reasoning_is_read_from_a_block_or_its_signature(block: dict[str, str], expected: str | None) -> None:
    answer = {"role": "assistant", "content": [{"type": "thinking", **block}, BLOCK]}

    assistant = chat([{"role": "user", "content": "Hi"}, answer, {"role": "user", "content": "Go on"}])["messages"][1]

    assert assistant.get("reasoning_content") == expected


def test_a_signature_that_pretends_to_be_ours_is_refused() -> None:
    block = {"type": "thinking", "thinking": "", "signature": f"{MARK}nothing"}

    with pytest.raises(InvalidRequest, match="signature"):
        chat([{"role": "assistant", "content": [block]}, {"role": "user", "content": "Hi"}])


def test_all_sealed_reasoning_of_a_request_has_one_bound() -> None:
    thought = {"type": "thinking", "thinking": "", "signature": seal("x" * (TEXT_MAX // 2))}
    user: dict[str, Any] = {"role": "user", "content": "Hi"}
    answer: dict[str, Any] = {"role": "assistant", "content": [thought, BLOCK]}

    def turns(count: int) -> list[dict[str, Any]]:
        return [*[user, answer] * count, user]

    assert len(chat(turns(2))["messages"][1]["reasoning_content"]) == TEXT_MAX // 2
    with pytest.raises(InvalidRequest) as refused:
        chat(turns(3))
    assert refused.value.param == "messages.content.signature"
