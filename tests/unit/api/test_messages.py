"""Anthropic's Messages API: a request becomes a chat, the chat's events become a message, and errors have its shape."""

from typing import Any

import orjson
import pytest

from api.formats.chat import ChatFormatter
from api.formats.messages import MessagesFormatter, Thinking
from api.formats.sealed import MARK, seal
from api.http.anthropic import error_object, speaks_anthropic
from api.http.problems import Problem
from api.schemas.message_answers import MessageAnswer
from api.serving.render_options import decode_render_options, render_options_of
from shared.domain.events import CallPart, Completed, Delta, Event, Failed, Finished, FinishReason, Usage
from tests.factories import done, make_job, started

BLOCK = {"type": "text", "text": "Hi"}


def delta(seq: int, text: str = "", **more: Any) -> Delta:
    return Delta(seq=seq, choice=0, text=text, token_ids=(seq,), **more)


EVENTS: list[Event] = [
    started(12),
    delta(1, reasoning="Hm"),
    delta(2, reasoning="."),
    delta(3, "I "),
    delta(4, "look."),
    delta(5, calls=(CallPart(0, "call_1", "read", ""), CallPart(0, "", "", '{"path"'))),
    delta(6, calls=(CallPart(0, "", "", ': "a"}'), CallPart(1, "call_2", "list", "{}"))),
    delta(7, finish_reason=FinishReason.TOOL_CALLS),
    Finished(
        seq=8,
        outcome=Completed(usage=Usage(prompt_tokens=12, completion_tokens=7, cached_tokens=8, reasoning_tokens=2)),
    ),
]


JOB = make_job("m")


def frames(*events: Event, thinking: Thinking = Thinking.SHOWN) -> list[tuple[str, dict[str, Any]]]:
    """The name and the data of each frame."""
    formatter = MessagesFormatter(thinking=thinking).stream(JOB, ids=False)
    found = []
    for frame in (frame for event in events for frame in formatter.frames(event)):
        name, data = frame.decode().removesuffix("\n\n").split("\n")
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


def whole(*events: Event, thinking: Thinking = Thinking.SHOWN) -> dict[str, Any]:
    collector = MessagesFormatter(thinking=thinking).whole(JOB)
    for event in events:
        collector.add(event)
    last = events[-1]
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Completed)
    return collector.body(last.outcome.usage)


def test_blocks_open_and_close_one_after_the_other() -> None:
    found = frames(*EVENTS)

    assert all(name == data["type"] for name, data in found)
    assert [(name.removeprefix("content_block_"), data.get("index")) for name, data in found] == [
        ("message_start", None),
        *[(name, 0) for name in ("start", "delta", "delta", "delta", "stop")],
        *[(name, 1) for name in ("start", "delta", "delta", "stop")],
        *[(name, 2) for name in ("start", "delta", "delta", "stop")],
        *[(name, 3) for name in ("start", "delta", "stop")],
        ("message_delta", None),
        ("message_stop", None),
    ]
    deltas = [data["delta"] for name, data in found if name == "content_block_delta"]
    assert [next(iter(set(each) - {"type"})) for each in deltas[:4]] == ["thinking", "thinking", "signature", "text"]
    assert "".join(each.get("partial_json", "") for each in deltas) == '{"path": "a"}{}'


def test_a_stream_and_a_whole_answer_say_the_same() -> None:
    start, *_, ended, _ = frames(*EVENTS)
    message = whole(*EVENTS)

    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": MARK},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_1", "name": "read", "input": {"path": "a"}},
        {"type": "tool_use", "id": "call_2", "name": "list", "input": {}},
    ]
    assert (
        start[1]["message"] | {"content": message["content"]} | ended[1]["delta"] | {"usage": ended[1]["usage"]}
        == message
    )
    assert (start[1]["message"]["usage"]["input_tokens"], message["usage"]["input_tokens"]) == (12, 4)
    assert message["usage"]["cache_read_input_tokens"] == 8


def test_a_whole_answer_is_what_the_document_says() -> None:
    class Closed(MessageAnswer, extra="forbid"):
        pass

    assert Closed.model_validate(whole(*EVENTS), strict=True).stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("reason", "stop", "expected"),
    [
        (FinishReason.STOP, "", ("end_turn", None)),
        (FinishReason.STOP, "END", ("stop_sequence", "END")),
        (FinishReason.LENGTH, "", ("max_tokens", None)),
    ],
)
def test_the_end_is_named(reason: FinishReason, stop: str, expected: tuple[str, str | None]) -> None:
    events: list[Event] = [started(), delta(1, "a", finish_reason=reason, stop=stop), done(2)]

    assert (whole(*events)["stop_reason"], whole(*events)["stop_sequence"]) == expected
    assert tuple(frames(*events)[-2][1]["delta"].values()) == expected


@pytest.mark.parametrize(
    ("tokens", "estimated", "expected"),
    [(9, False, "max_tokens"), (8, False, "model_context_window_exceeded"), (8, True, "max_tokens")],
)
def test_an_answer_that_fills_the_context_says_so(tokens: int, estimated: bool, expected: str) -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=tokens, estimated=estimated)
    collector = MessagesFormatter(max_tokens=9).whole(JOB)
    collector.add(delta(1, "a", finish_reason=FinishReason.LENGTH))

    assert collector.body(usage)["stop_reason"] == expected


def test_reasoning_is_hidden_unless_it_is_asked_for() -> None:
    assert [block["type"] for block in whole(*EVENTS, thinking=Thinking.HIDDEN)["content"]] == [
        "text",
        "tool_use",
        "tool_use",
    ]
    assert "thinking" not in str(frames(*EVENTS[:4], thinking=Thinking.HIDDEN)[1:])


def test_omitted_reasoning_comes_back_by_its_signature() -> None:
    block, *_ = whole(*EVENTS, thinking=Thinking.SEALED)["content"]
    streamed = [data for _, data in frames(*EVENTS, thinking=Thinking.SEALED)]

    assert block == {"type": "thinking", "thinking": "", "signature": seal("Hm.")}
    assert streamed[2]["delta"] == {"type": "signature_delta", "signature": seal("Hm.")}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": "b', {"a": "b"}), ("", {}), ("[1]", {"INVALID_JSON": "[1]"}), ("tru th", {"INVALID_JSON": "tru th"})],
)
def test_arguments_are_an_object_whatever_the_model_wrote(arguments: str, expected: dict[str, Any]) -> None:
    call = delta(1, calls=(CallPart(0, "call_1", "read", arguments),), finish_reason=FinishReason.LENGTH)

    (block,) = whole(started(), call, done(2))["content"]

    assert block["input"] == expected


def test_a_failure_ends_the_stream_with_an_error() -> None:
    failed = Finished(seq=2, outcome=Failed(code="engine_error", message="broke"))

    name, data = frames(started(), delta(1, "a"), failed)[-1]

    assert (name, data) == ("error", {"type": "error", "error": {"type": "api_error", "message": "broke"}})


@pytest.mark.parametrize("thinking", list(Thinking))
def test_any_process_rebuilds_the_stream(thinking: Thinking) -> None:
    formatter = MessagesFormatter(thinking=thinking, max_tokens=9)

    assert decode_render_options(render_options_of(JOB, formatter).encode()).formatter() == formatter


def test_options_of_a_chat_are_stored_as_the_release_before_reads_them() -> None:
    stored = render_options_of(JOB, ChatFormatter(n=1)).encode()

    assert "thinking" in render_options_of(JOB, MessagesFormatter()).encode()
    assert "thinking" not in stored
    assert "max_tokens" not in stored


def test_the_errors_of_a_chat_get_the_names_of_a_message() -> None:
    error = error_object(400, "invalid_request", "'messages' must not contain content of type 'image_url'.")

    assert error["message"] == "'messages' must not contain content of type 'image'."


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/messages", [], True),
        ("/v1/messages/count_tokens", [], True),
        ("/v1/messagesx", [], False),
        ("/v1/models", [(b"anthropic-version", b"2023-06-01")], True),
        ("/v1/models", [], False),
    ],
)
def test_who_reads_anthropics_shapes(path: str, headers: list[tuple[bytes, bytes]], expected: bool) -> None:
    assert speaks_anthropic({"path": path, "headers": headers}) is expected


def test_an_error_has_the_shape_of_its_api() -> None:
    problem = Problem(code="queue_full", message="full", headers={"retry-after": "3"})
    scope = {"path": "/v1/messages", "headers": [], "state": {"request_id": "req_1"}}

    answer = problem.response(scope)

    assert orjson.loads(bytes(answer.body)) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "full"},
        "request_id": "req_1",
    }
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert "code" in orjson.loads(bytes(problem.response({"path": "/v1/chat", "headers": []}).body))["error"]


def test_a_prompt_that_is_too_long_is_called_so_for_claude_code() -> None:
    assert error_object(400, "context_length_exceeded", "9 > 8") == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 9 > 8",
    }
