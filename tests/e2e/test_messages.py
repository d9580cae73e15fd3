"""Anthropic's Messages API against real processes: its own client, and what a Penstock adds to it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Stack, standalone_stack
from tests.e2e.test_clients import CLIENTS, MANY, run

THINKER = """
import asyncio
from penstock.engines import ChatSource, Reasoning

class Thinker(ChatSource):
    abilities = frozenset({"reasoning"})
    resume = "repeat"

    async def chat(self, request):
        before = [message.get("reasoning_content") for message in request.messages]
        if any(before):
            yield f"I thought: {before[1]}"
        elif request.question == "fail":
            yield "I "
            await asyncio.sleep(0.1)
            raise RuntimeError("as asked")
        elif request.question == "wait":
            await asyncio.sleep(1)
            yield "waited"
        else:
            yield Reasoning("I ")
            yield Reasoning("think.")
            yield "I answer."
"""
ASK = {"model": "penstock-tiny", "max_tokens": 30, "messages": [{"role": "user", "content": "What is 3 + 4?"}]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the built-in model and a class that reasons."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "thinker.py").write_text(THINKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        with standalone_stack(
            folder, "builtin", keep_alive_s=0.2, first_event_ms=200, body_bytes_max=100_000
        ) as running:
            running.add_worker("thinker=x", options=["--engine", "thinker:Thinker"])
            running.wait_ready(2)
            yield running


def post(stack: Stack, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{stack.base}/v1/messages", json=body, headers=named, timeout=60)


def test_anthropics_own_client(stack: Stack) -> None:
    said = run([MANY / "python", CLIENTS / "with_anthropic.py", stack.base, "thinker"])

    assert said.startswith("anthropic ")


def test_a_stream_is_resumed_behind_any_frame(stack: Stack) -> None:
    answer = post(stack, ASK | {"stream": True}, x_penstock_event_ids="true")
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    url = f"{stack.base}/v1/jobs/{answer.headers['x-penstock-job-id']}/events"
    ids = [frame.rpartition("id: ")[2] for frame in frames]

    assert len(frames) > 5
    for count, position in enumerate(ids, 1):
        rest = httpx.get(url, headers={"Last-Event-ID": position}).text
        assert [frame for frame in rest.split("\n\n") if frame] == frames[count:], position


def test_a_repeated_request_is_one_job(stack: Stack) -> None:
    first, again = (post(stack, ASK, idempotency_key="once") for _ in range(2))

    assert first.json() == again.json()
    assert first.json()["id"] == first.headers["x-penstock-job-id"]
    assert post(stack, ASK | {"max_tokens": 3}, idempotency_key="once").json()["error"]["type"] == (
        "invalid_request_error"
    )


def test_pings_come_while_a_stream_waits(stack: Stack) -> None:
    body = ASK | {"model": "thinker", "stream": True, "messages": [{"role": "user", "content": "wait"}]}

    events = [line for line in post(stack, body).text.split("\n") if line.startswith("event: ")]

    assert events.count("event: ping") >= 2
    assert next(event for event in events if event != "event: ping") == "event: message_start"


def test_either_header_carries_the_key(stack: Stack) -> None:
    job_id = post(stack, ASK, x_api_key="mine").json()["id"]
    url = f"{stack.base}/v1/jobs/{job_id}"

    assert httpx.get(url, headers={"authorization": "Bearer mine"}).status_code == 200
    assert httpx.get(url, headers={"x-api-key": "mine"}).status_code == 200
    assert httpx.get(url, headers={"x-api-key": "another"}).status_code == 404


def test_errors_before_any_route_have_the_shape_too(stack: Stack) -> None:
    large = httpx.post(f"{stack.base}/v1/messages", content=b"x" * 200_000)
    missing = httpx.get(f"{stack.base}/v1/messages/batches")
    wrong_verb = httpx.get(f"{stack.base}/v1/messages")

    for answer, kind in (
        (large, "request_too_large"),
        (missing, "not_found_error"),
        (wrong_verb, "invalid_request_error"),
    ):
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_max_tokens_is_lowered_to_what_fits_the_context(stack: Stack) -> None:
    answer = post(stack, ASK | {"max_tokens": 64_000, "temperature": 0}).json()

    assert (answer["content"][0]["text"], answer["stop_reason"]) == ("3 + 4 = 7.", "end_turn")


def test_an_answer_keeps_to_a_schema(stack: Stack) -> None:
    schema = {"type": "object", "properties": {"sum": {"enum": [7, 8]}}, "required": ["sum"]}
    form = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}

    answer = post(stack, ASK | {"max_tokens": 100, "output_config": form}).json()

    assert json.loads(answer["content"][0]["text"])["sum"] in (7, 8)


def test_a_dead_workers_stream_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"scripted_step_ms": 20, "scripted_tokens": 100_000}
    body = ASK | {"model": "scripted", "max_tokens": 100, "temperature": 0, "stream": True}
    with standalone_stack(tmp_path, "scripted", workers=2, **settings) as stack:
        undisturbed = post(stack, body).text
        with httpx.stream("POST", f"{stack.base}/v1/messages", json=body, timeout=60) as response:
            lines = response.iter_lines()
            began = [next(lines) for _ in range(30)]
            (busy,) = [worker for worker in stack.workers if stack.worker_running(worker)]
            busy.kill()
            text = "\n".join([*began, *lines])

    assert _texts(text) == _texts(undisturbed)
    assert "event: message_stop" in text


def _texts(stream: str) -> list[str]:
    datas = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n") if line.startswith("data: ")]
    return [data["delta"]["text"] for data in datas if data["type"] == "content_block_delta"]
