"""Responses by the real client: whole, streamed, in the background, resumed, continued, cancelled, deleted."""

import json
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.e2e.test_tools import WEATHER

MODEL = "caller"
TOOL: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}


class Weather(BaseModel):
    city: Literal["Bern", "Basel"]
    rain: bool


def test_a_whole_response(responses: Any) -> None:
    made = responses.create(model="scripted", input="x", max_output_tokens=5, temperature=0, metadata={"a": "b"})

    assert made.id.startswith("resp_")
    assert (made.object, made.status, made.incomplete_details.reason) == ("response", "incomplete", "max_output_tokens")
    assert len(made.output_text.split()) == 5
    assert (made.usage.output_tokens, made.usage.input_tokens) == (5, 2)
    assert made.usage.output_tokens_details.reasoning_tokens == 0
    assert made.metadata == {"a": "b"}
    assert made.output[0].role == "assistant"
    assert responses.retrieve(made.id) == made


def test_a_response_repeats_what_was_asked_and_what_the_model_takes_for_the_rest(responses: Any) -> None:
    asked = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "max_tool_calls": 3, "truncation": "auto"}
    more = {"top_k": 5, "seed": 3, "chat_template_kwargs": {"x": 1}, "client_metadata": {"session": "1"}}
    form: Any = {"format": {"type": "json_schema", "name": "weather", "schema": WEATHER}}
    made = responses.create(model=MODEL, input="x", text=form, extra_body=asked | more).to_dict()
    with_its_own = responses.create(model="scripted", input="x", max_output_tokens=2).to_dict()

    assert {name: made[name] for name in asked} == asked
    assert made["completed_at"] >= made["created_at"]
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "truncation")
    assert [with_its_own[name] for name in names] == [1, 1, 0, 0, 0, "disabled"]
    assert (with_its_own["completed_at"], with_its_own["max_tool_calls"]) == (None, None)


def test_a_stream_tells_every_step_in_order_and_ends_with_the_whole(responses: Any) -> None:
    events = list(responses.create(model="scripted", input="x", max_output_tokens=4, temperature=0, stream=True))

    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 4,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    final = events[-1].response
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
    assert responses.retrieve(final.id) == final


def test_the_stream_helper_reads_it(responses: Any) -> None:
    with responses.stream(model=MODEL, input="Weather?", text_format=Weather) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()

    assert final.output_text == text
    assert isinstance(final.output_parsed, Weather)


def test_one_in_the_background_is_polled_and_picked_up(responses: Any) -> None:
    queued = responses.create(model="scripted", input="x", max_output_tokens=150, background=True, temperature=0)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])

    first = []
    for event in responses.retrieve(queued.id, stream=True):
        first.append(event)
        if len(first) == 20:
            break
    rest = list(responses.retrieve(queued.id, stream=True, starting_after=first[-1].sequence_number))

    assert [event.sequence_number for event in [*first, *rest]] == list(range(len(first) + len(rest)))
    assert rest[-1].type == "response.incomplete"
    again = list(responses.retrieve(queued.id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in [*first, *rest]]
    assert responses.retrieve(queued.id) == rest[-1].response


def test_a_stream_with_ids_is_picked_up_behind_any_event(caller: Stack) -> None:
    asked = {"model": "scripted", "input": "x", "max_output_tokens": 3, "temperature": 0, "stream": True}
    numbered = {"x-penstock-event-ids": "true"}
    answer = httpx.post(f"{caller.base}/v1/responses", json=asked, headers=numbered, timeout=30)
    job_id, whole = answer.headers["x-penstock-job-id"], answer.text
    frames = [frame + "\n\n" for frame in whole.split("\n\n")[:-1]]
    assert [frame.splitlines()[2] for frame in frames] == [f"id: {at}" for at in range(len(frames))]

    for at in (0, 2, len(frames) - 1):
        after = numbered | {"Last-Event-ID": str(at)}
        for path in (f"responses/{job_id}?stream=true", f"jobs/{job_id}/events"):
            assert httpx.get(f"{caller.base}/v1/{path}", headers=after).text == "".join(frames[at + 1 :])

    for path in (f"responses/{job_id}?stream=true", f"jobs/{job_id}/events"):
        for wrong in ("x", "1.1"):
            refused = httpx.get(f"{caller.base}/v1/{path}", headers={"Last-Event-ID": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_the_stream_helper_picks_up_what_ran_in_the_background(responses: Any) -> None:
    form = {"type": "json_schema", "name": "weather", "schema": WEATHER}
    made = responses.create(model=MODEL, input="Weather?", text={"format": form}, background=True)

    with responses.stream(response_id=made.id, starting_after=5) as stream:
        final = stream.get_final_response()

    assert final.status == "completed"
    jsonschema.validate(json.loads(final.output_text), WEATHER)


def test_one_in_the_background_goes_on_when_its_reader_leaves(responses: Any) -> None:
    stream = responses.create(model="scripted", input="x", max_output_tokens=100, background=True, stream=True)
    response_id = next(iter(stream)).response.id
    stream.close()

    eventually("done", lambda: responses.retrieve(response_id).status == "incomplete")


def test_a_stream_in_the_background_ends_when_it_is_cancelled(responses: Any) -> None:
    stream = responses.create(model="scripted", input="x", max_output_tokens=90_000, background=True, stream=True)
    events = iter(stream)
    response_id = next(events).response.id

    assert responses.cancel(response_id).status == "cancelled"

    last = list(events)[-1]
    assert (last.type, last.response.status) == ("response.failed", "cancelled")
    assert responses.cancel(response_id).status == "cancelled"
    assert responses.retrieve(response_id).status == "cancelled"


def test_a_stream_in_the_background_ends_when_the_engine_fails(responses: Any) -> None:
    made = responses.create(model="scripted", input="fault:raise@30", max_output_tokens=100, background=True)

    events = list(responses.retrieve(made.id, stream=True))

    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert "this fault" in responses.retrieve(made.id).error.message


def test_only_one_in_the_background_can_be_cancelled(responses: Any) -> None:
    made = responses.create(model="scripted", input="x", max_output_tokens=3)

    with pytest.raises(openai.BadRequestError):
        responses.cancel(made.id)
    assert responses.retrieve(made.id) == made


def test_a_conversation_goes_on(responses: Any, caller: Stack) -> None:
    first = responses.create(model="scripted", input="one", max_output_tokens=3, temperature=0, instructions="be brief")

    second = responses.create(
        model="scripted", input="two", max_output_tokens=3, temperature=0, previous_response_id=first.id
    )

    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "two"},
    ]
    chat = caller.client().chat.completions.create(model="scripted", messages=turns, max_tokens=3, temperature=0)  # type: ignore[arg-type]
    assert second.output_text == chat.choices[0].message.content
    assert second.previous_response_id == first.id
    (item,) = list(responses.input_items.list(second.id))
    assert item.content[0].text == "two"


def test_calls_are_made_and_answered(responses: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [TOOL], "parallel_tool_calls": False, "max_output_tokens": 400}
    first = responses.create(**asked, input="Weather?", tool_choice="required")

    (call,) = first.output
    assert (call.type, call.name, first.status) == ("function_call", "weather", "completed")
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    by_id = responses.create(**asked | {"max_output_tokens": 3}, input=[answer], previous_response_id=first.id)
    by_hand = [{"role": "user", "content": "Weather?"}, call, answer]
    in_full = responses.create(**asked | {"max_output_tokens": 3}, input=by_hand)
    assert by_id.usage.input_tokens == in_full.usage.input_tokens > first.usage.input_tokens


def test_a_streamed_call_tells_its_arguments(responses: Any) -> None:
    stream = responses.create(
        model=MODEL,
        input="x",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        stream=True,
        parallel_tool_calls=False,
    )
    events = list(stream)

    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done.arguments
    jsonschema.validate(json.loads(done.arguments), WEATHER)
    assert events[-1].type == "response.completed"


def test_structured_text_is_parsed_by_the_client(responses: Any) -> None:
    parsed = responses.parse(model=MODEL, input="Weather?", text_format=Weather)

    assert isinstance(parsed.output_parsed, Weather)


def test_what_is_not_stored_is_not_found(responses: Any) -> None:
    made = responses.create(model="scripted", input="x", max_output_tokens=2, store=False)

    with pytest.raises(openai.NotFoundError):
        responses.retrieve(made.id)


def test_what_is_deleted_or_anothers_is_not_found(responses: Any, caller: Stack) -> None:
    made = responses.create(model="scripted", input="x", max_output_tokens=90_000, background=True)
    theirs = caller.client(api_key="another").responses
    for call in (theirs.retrieve, theirs.cancel, theirs.delete, theirs.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        theirs.create(model="scripted", input="x", previous_response_id=made.id)

    responses.delete(made.id)

    with pytest.raises(openai.NotFoundError):
        responses.retrieve(made.id)
    eventually("it does not run", lambda: caller.running() == 0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/"}]}]},
            "input",
        ),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAA"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_0_0"}]}, "input"),
        ({"tools": [{"type": "no_such_tool"}]}, "tools.0"),
        ({"background": True, "store": False}, "store"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"truncation": "some"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"no_such": 1}, "no_such"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(responses: Any, change: dict[str, Any], param: str) -> None:
    body = {"model": "scripted", "input": "x", **change}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        responses._client.post("/responses", body=body, cast_to=object)

    assert str(refused.value.param).startswith(param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),  # the scripted engine has no grammars
        ({"model": MODEL, "input": "x" * 2_000_000}, "input"),
    ],
    ids=["form", "characters"],
)
def test_an_error_of_the_worker_names_what_the_client_sent(
    responses: Any, change: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"model": "scripted", "input": "x", "stream": stream, **change}
    with pytest.raises(openai.BadRequestError) as refused:
        responses._client.post("/responses", body=body, cast_to=object)

    assert refused.value.param == param
    assert "messages" not in refused.value.message


def test_it_survives_its_worker(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "scripted", workers=2, scripted_step_ms=10, scripted_tokens=100_000) as stack:
        client = stack.client().responses
        asked: Any = {"model": "scripted", "input": "x", "max_output_tokens": 300, "temperature": 0}
        expected = client.create(**asked).output_text

        events, seen = iter(client.create(**asked, stream=True)), []
        for event in events:
            seen.append(event)
            if len(seen) == 50:
                next(worker for worker in stack.workers if stack.worker_running(worker)).kill()

        assert seen[-1].response.output_text == expected
        assert [event.sequence_number for event in seen] == list(range(len(seen)))


def test_a_chat_that_is_stored_is_found_again(caller: Stack) -> None:
    chats, messages = caller.client().chat.completions, [{"role": "user", "content": "keep this"}]
    asked: dict[str, Any] = {
        "model": "scripted",
        "messages": messages,
        "max_tokens": 3,
        "store": True,
        "logprobs": True,
    }
    first = chats.create(**asked, metadata={"run": "1"})
    second = chats.create(**asked, metadata={"run": "2"})
    chats.create(**asked | {"store": False})

    assert [chat.id for chat in chats.list()] == [first.id, second.id]
    assert [chat.id for chat in chats.list(metadata={"run": "2"})] == [second.id]
    assert chats.retrieve(first.id).choices == first.choices
    assert chats.update(first.id, metadata={"run": "3"}).to_dict()["metadata"] == {"run": "3"}
    assert [message.content for message in chats.messages.list(first.id)] == ["keep this"]
    assert chats.delete(first.id).deleted
    for other in (chats, caller.client(api_key="another").chat.completions):
        with pytest.raises(openai.NotFoundError):
            other.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="metadata"):
        chats.create(**asked | {"store": False}, metadata={"run": "1"})
