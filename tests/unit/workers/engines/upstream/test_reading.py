"""What upstreams answer, as it is read: events, chunks, errors."""

from typing import Any

import orjson
import pytest

from shared.domain.events import CallPart, FinishReason, Likelihood, Logprobs, Usage
from tests.unit.workers.engines.upstream.conftest import calls_of, end_of, reasoning_of, text_of
from tests.upstreams import chunk
from workers.engines.upstream.answers import error_of, failure_in, retry_after_s
from workers.engines.upstream.chat_stream import ChunkReader, WithoutEcho
from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy, UpstreamRefused
from workers.engines.upstream.messages_stream import MessagesReader
from workers.engines.upstream.sse import EventReader
from workers.source import Piece, Said, Text

BODY = b': hello\n\nevent: x\nid: 7\ndata: {"a": 1}\n\ndata:{"b": 2}\r\n\r\ndata: one\ndata: two\n\ndata: cut'


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(BODY)])
def test_events_are_the_same_however_a_body_is_split(size: int) -> None:
    reader = EventReader()

    events = [data for at in range(0, len(BODY), size) for data in reader.feed(BODY[at : at + size])]

    assert events == [b'{"a": 1}', b'{"b": 2}', b"one\ntwo"]


def test_an_endless_event_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.upstream.sse.EVENT_BYTES_MAX", 100)
    reader = EventReader()

    for _ in range(6):
        reader.feed(b"data: 0123456789")

    with pytest.raises(UpstreamBroken, match="more than 100 bytes"):
        reader.feed(b"data: 0123456789")


def test_many_lines_without_an_end_of_the_event_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.upstream.sse.EVENT_BYTES_MAX", 100)
    reader = EventReader()

    for _ in range(5):
        reader.feed(b"data: 0123456789\n")

    with pytest.raises(UpstreamBroken, match="more than 100 bytes"):
        reader.feed(b"data: 0123456789\n")


def read(*chunks: Any) -> list[Piece]:
    reader = ChunkReader()
    return [piece for each in chunks for piece in reader.read(orjson.dumps(each))]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gives_up_has_not_ended(reason: str) -> None:
    with pytest.raises(UpstreamBroken, match=f"ends its stream with {reason}"):
        read(chunk({"content": "yes"}), chunk({}, reason))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_has_two_names(field: str) -> None:
    pieces = read(chunk({field: "hm"}), chunk({"content": "yes"}))

    assert (reasoning_of(pieces), text_of(pieces)) == ("hm", "yes")


def test_parts_of_calls_come_as_they_are() -> None:
    first = {"index": 0, "id": "c-1", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = read(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
        chunk({}, "tool_calls"),
    )

    assert calls_of(pieces) == [CallPart(0, "c-1", "f", ""), CallPart(0, "", "", '{"a"'), CallPart(0, "", "", ": 1}")]
    assert end_of(pieces) == [FinishReason.TOOL_CALLS]


def test_arguments_that_are_an_object_become_text() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}

    assert calls_of(read(chunk({"tool_calls": [call]}))) == [CallPart(0, "c", "f", '{"a":1}')]


def test_logprobs_are_bytes_and_their_numbers() -> None:
    likely = {"token": "b", "logprob": -2.0, "bytes": None}
    row = {"token": "a", "logprob": -0.5, "bytes": [195], "top_logprobs": [likely]}
    answer = chunk({"content": "a"})
    answer["choices"][0]["logprobs"] = {"content": [row]}

    (piece,) = read(answer)

    assert piece == Text("a", logprobs=(Logprobs(Likelihood(b"\xc3", -0.5), (Likelihood(b"b", -2.0),)),))


def test_a_completion_has_lists_of_logprobs() -> None:
    rows = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -2.0}]}

    (piece,) = read({"choices": [{"index": 0, "text": "a", "logprobs": rows}]})

    top = (Likelihood(b"a", -0.5), Likelihood(b"b", -2.0))
    assert piece == Text("a", logprobs=(Logprobs(Likelihood(b"a", -0.5), top),))


@pytest.mark.parametrize(
    ("usage", "cached", "reasoned"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 3}}, 3, 0),
        ({"prompt_cache_hit_tokens": 3}, 3, 0),
        ({"cached_tokens": 3}, 3, 0),
        ({"completion_tokens_details": {"reasoning_tokens": 2}, "prompt_tokens_details": None}, 0, 2),
    ],
)
def test_usage_is_read_by_each_provider_s_names(usage: Any, cached: int, reasoned: int) -> None:
    (read_usage,) = read({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5} | usage})

    assert read_usage == Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=cached, reasoning_tokens=reasoned)


@pytest.mark.parametrize("where", ["choice", "x_groq"])
def test_usage_stands_elsewhere_too(where: str) -> None:
    usage, last = {"prompt_tokens": 7, "completion_tokens": 5}, chunk({}, "stop")
    if where == "choice":
        last["choices"][0]["usage"] = usage
    else:
        last["x_groq"] = {"usage": usage}

    assert end_of(read(last)) == [FinishReason.STOP, Usage(prompt_tokens=7, completion_tokens=5)]


def test_minimax_repeats_the_answer_at_its_end_and_it_is_said_once() -> None:
    whole = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    last = {"object": "chat.completion", "choices": [whole], "base_resp": {"status_code": 0, "status_msg": ""}}

    assert text_of(read(chunk({"content": "yes"}), last)) == "yes"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, UpstreamBusy),
        ({"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}, UpstreamRefused),
        ({"base_resp": {"status_code": 1004, "status_msg": "not authorized"}}, UpstreamBroken),
        ({"code": 11202, "message": "AppIdQpsOverFlowError"}, UpstreamBusy),
        ({"code": 10004, "message": "wrong schema"}, UpstreamRefused),
        ({"error": {"message": "overloaded", "type": "overloaded_error"}}, UpstreamBusy),
        ({"error": {"message": "no", "code": 400}}, UpstreamRefused),
        ({"error": "what?"}, UpstreamBroken),
    ],
)
def test_a_failure_of_status_200_is_one(failure: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read(failure)


def test_a_chunk_without_choices_is_no_failure() -> None:
    assert failure_in({"choices": [], "code": 0, "base_resp": {"status_code": 0}}) is None
    assert read({"choices": [], "prompt_filter_results": []}) == []  # Azure's first


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no"}}, "no"),
        ([{"error": {"message": "no"}}], "no"),  # Gemini
        ({"error": "no"}, "no"),
        ({"object": "error", "message": "no", "code": 400}, "no"),  # vLLM of old
        ({"detail": "no"}, "no"),
        ({"error_code": 1, "error_msg": "no"}, "no"),
    ],
)
def test_errors_are_read_in_every_shape(body: Any, message: str) -> None:
    assert str(error_of(400, {}, orjson.dumps(body))) == message


def test_a_page_instead_of_an_error_is_shown_shortly() -> None:
    assert len(str(error_of(500, {}, b"<html>" * 1000))) < 600


@pytest.mark.parametrize("words", ["maximum context length is 10", "prompt is longer than the maximum model length"])
def test_a_prompt_that_is_too_long_is_known_by_its_words(words: str) -> None:
    error = error_of(400, {}, orjson.dumps({"error": {"message": words}}))

    assert isinstance(error, UpstreamRefused)
    assert error.code == "context_length_exceeded"


def test_a_403_may_be_about_more_than_the_key() -> None:
    assert "or what it asks for" in str(error_of(403, {}, b"{}"))


@pytest.mark.parametrize(("status", "final"), [(401, True), (404, True), (500, True), (502, False), (504, False)])
def test_some_answers_would_be_the_same_again(status: int, final: bool) -> None:
    error = error_of(status, {}, b"{}")

    assert isinstance(error, UpstreamBroken)
    assert error.final is final


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.05),
        ({"retry-after": "99999"}, 600),
        ({"retry-after": "soon"}, 1),
        ({}, 1),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_bounds(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_s(headers) == seconds


def test_a_message_of_anthropic_has_thinking_text_calls_and_usage() -> None:
    events = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 4, "cache_creation_input_tokens": 2}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "yes"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "f"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    reader = MessagesReader(Said())

    pieces = [piece for event in events for piece in reader.read(orjson.dumps(event))]

    assert (reasoning_of(pieces), text_of(pieces)) == ("hm", "yes")
    assert calls_of(pieces) == [CallPart(0, "t", "f", ""), CallPart(0, "", "", '{"a": 1}')]
    assert end_of(pieces) == [FinishReason.TOOL_CALLS, Usage(prompt_tokens=6, completion_tokens=9)]
    assert reader.ended


@pytest.mark.parametrize(
    ("said", "next_text", "fresh"), [("a b ", " c", "c"), ("a b", " c", " c"), ("a\n\n", "\nc", "c")]
)
def test_spaces_at_a_seam_are_said_once(said: str, next_text: str, fresh: str) -> None:
    reader = MessagesReader(Said(text=said))
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": next_text}}

    assert text_of(reader.read(orjson.dumps(event))) == fresh


def test_an_overloaded_anthropic_has_no_room() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    with pytest.raises(UpstreamBusy):
        MessagesReader(Said()).read(orjson.dumps(error))


def echoed(said: str, *texts: str) -> list[str]:
    """Return the texts of an answer that continues what was said, as they are passed on."""
    reader = WithoutEcho(ChunkReader(), said)
    chunks = [*(chunk({"content": text}) for text in texts), chunk({}, "stop")]
    read_one_by_one = [reader.read(orjson.dumps(each)) for each in chunks]
    assert reader.ended
    assert read_one_by_one[-1][-1] is FinishReason.STOP
    return [piece.text for pieces in read_one_by_one for piece in pieces if isinstance(piece, Text) and piece.text]


def test_what_was_said_is_not_said_again() -> None:
    assert echoed("one two", "one two three", " four") == [" three", " four"]
    assert echoed("one two", "one", " t", "wo", " three") == [" three"]
    assert echoed("one two", "one t", "wo three") == [" three"]


def test_an_echo_is_left_out_once() -> None:
    assert echoed("ha ", "ha ", "ha ", "ha ") == ["ha ", "ha "]


def test_a_beginning_that_is_no_echo_is_passed_on_whole() -> None:
    assert echoed("one two", " three", " four") == [" three", " four"]
    assert echoed("one two", "one", " three") == ["one", " three"]
    assert echoed("one two", "one") == ["one"]
    assert echoed("", "one") == ["one"]
