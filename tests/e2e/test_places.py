"""Streams that wait are told where their jobs stand, in comments that no client trips over."""

import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.e2e.test_faults import Reader, ask

IDS = {"x-penstock-event-ids": "true"}
PAUSED = "penstock:paused:scripted"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("places"), "scripted", max_tokens="strict") as running:
        yield running


class Lines(threading.Thread):
    """Reads one stream line by line."""

    def __init__(self, stack: Stack, content: str) -> None:
        super().__init__()
        self._url = f"{stack.base}/v1/chat/completions"
        self._body = {"model": "scripted", "messages": ask(content), "max_tokens": 5, "stream": True}
        self.lines: list[str] = []
        self.headers = httpx.Headers()

    def run(self) -> None:
        with (
            suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", self._url, json=self._body, headers=IDS, timeout=60) as response,
        ):
            self.headers = response.headers
            for line in response.iter_lines():
                self.lines.append(line)


def test_waiting_streams_are_told_their_places_as_they_change(stack: Stack) -> None:
    stack.redis.set(PAUSED, 1)
    leader, follower = Lines(stack, "a"), Lines(stack, "b")
    openai = Reader(stack, "scripted", "c", max_tokens=5, extra_headers=IDS)
    leader.start()
    eventually("its place is told", lambda: ": position 1" in leader.lines)
    follower.start()
    eventually("its place is told", lambda: ": position 2" in follower.lines)
    shown = httpx.get(f"{stack.base}/v1/jobs/{follower.headers['x-penstock-job-id']}").json()
    openai.start()
    eventually("three wait", lambda: stack.redis.llen("rq:queue:scripted") == 3)
    threading.Event().wait(2.5)  # for the answer's head and a comment to the client of openai, which tells neither

    httpx.post(f"{stack.base}/v1/jobs/{leader.headers['x-penstock-job-id']}/cancel")
    eventually("it moves up", lambda: ": position 1" in follower.lines)
    stack.redis.delete(PAUSED)
    for each in (leader, follower, openai):
        each.join(30)

    assert (shown["position"], shown["status"]) == (2, "queued")
    assert shown["tokens_ahead"] > 0
    assert int(follower.headers["x-penstock-tokens-ahead"]) > 0
    assert "data: [DONE]" in follower.lines
    for at, line in enumerate(follower.lines):
        if line.startswith(":"):
            assert follower.lines[at + 1], "a blank line after a comment would be an event without data"
    assert openai.error is None
    assert openai.finish == "length"
    assert stack.redis.llen("rq:queue:scripted") == 0
