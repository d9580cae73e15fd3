"""Nothing is lost when workers are killed, stopped or frozen, clients leave, or Redis goes away."""

import asyncio
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, eventually, metric, running_stack

STREAMS = 8
KILLS = 8  # the campaign in bench/chaos has more
DEFAULT_LEASE = {"lease_ms": 3000, "heartbeat_ms": 1000}  # the defaults, which are slower than other tests need
BESIDE_LEASE_S = 2.0  # the part of a pause that is not waiting for the lease to run out
LONG = {"scripted_step_ms": 20, "scripted_tokens": 100_000}


def ask(content: str) -> Any:
    return [{"role": "user", "content": content}]


class Reader(threading.Thread):
    """Reads one greedy stream and notes when each piece came."""

    def __init__(self, stack: Stack, model: str, content: str, **options: Any) -> None:
        super().__init__()
        self._stream = stack.client().chat.completions.create
        self._request: Any = {"model": model, "messages": ask(content), "temperature": 0, "stream": True, **options}
        self.text = ""
        self.at: list[float] = []
        self.finish: str | None = None
        self.error: Exception | None = None
        self.started = threading.Event()

    def run(self) -> None:
        try:
            for chunk in self._stream(**self._request):
                (choice,) = chunk.choices
                self.text += choice.delta.content or ""
                self.finish = choice.finish_reason or self.finish
                self.at.append(time.monotonic())
                self.started.set()
        except openai.OpenAIError as error:
            self.error = error
        finally:
            self.started.set()

    def longest_pause_s(self) -> float:
        return max((b - a for a, b in zip(self.at, self.at[1:], strict=False)), default=0)


def read_all(stack: Stack, model: str, contents: list[str], **options: Any) -> list[Reader]:
    readers = [Reader(stack, model, content, **options) for content in contents]
    for reader in readers:
        reader.start()
    return readers


def expect_whole(readers: list[Reader], expected: list[str]) -> None:
    for reader, text in zip(readers, expected, strict=True):
        reader.join(timeout=60)
        assert reader.error is None
        assert reader.finish is not None
        assert reader.text == text


@pytest.fixture(params=["scripted", "builtin"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, own_redis: EmbeddedRedis
) -> Iterator[tuple[Stack, str, list[str], float]]:
    """Start a stack with two workers; return it with its model, prompts and longest pause. The built-in model has the
    default lease, and the scripted engine the shorter one of other tests."""
    if request.param == "scripted":
        prompts = [f"question {n}" for n in range(STREAMS)]
        with running_stack(tmp_path, own_redis, "scripted", workers=2, scripted_step_ms=10) as stack:
            yield stack, "scripted", prompts, 1 + BESIDE_LEASE_S
    else:
        prompts = [
            f"Tell me a story about a {animal}." for animal in "cat dog fox bird rabbit mouse horse bear".split()
        ]
        with running_stack(tmp_path, own_redis, "builtin", workers=2, **DEFAULT_LEASE) as stack:
            yield stack, BUILTIN, prompts, 3 + BESIDE_LEASE_S


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_killed_worker_costs_no_token_at_seeded_moments(pair: tuple[Stack, str, list[str], float]) -> None:
    stack, model, prompts, pause_s = pair
    undisturbed = read_all(stack, model, prompts)
    for reader in undisturbed:
        reader.join(timeout=60)
    expected = [reader.text for reader in undisturbed]
    took = max(reader.at[-1] for reader in undisturbed) - min(reader.at[0] for reader in undisturbed)
    rng = random.Random(2026)

    for _ in range(KILLS):
        stack.wait_ready(2)
        readers = read_all(stack, model, prompts)
        for reader in readers:
            reader.started.wait(30)
        threading.Event().wait(rng.uniform(0, took))
        victim = rng.choice(stack.workers)
        stack.workers.remove(victim)
        victim.kill()
        stack.add_worker("scripted" if model == "scripted" else "builtin")

        expect_whole(readers, expected)
        assert max(reader.longest_pause_s() for reader in readers) < pause_s


def test_a_frozen_worker_that_wakes_writes_nothing(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", **LONG) as stack:
        first = stack.workers[0]
        readers = read_all(stack, "scripted", ["a", "b"], max_tokens=150)
        for reader in readers:
            reader.started.wait(30)
        os.kill(first.popen.pid, signal.SIGSTOP)
        stack.add_worker("scripted")
        stack.wait_ready(2)
        eventually("the second worker has taken over", lambda: stack.worker_running(stack.workers[1]))
        os.kill(first.popen.pid, signal.SIGCONT)
        for reader in readers:
            reader.join(timeout=60)
        again = read_all(stack, "scripted", ["a", "b"], max_tokens=150)

        expect_whole(again, [reader.text for reader in readers])
        assert all(reader.error is None and len(reader.text.split()) == 150 for reader in readers)


def test_sigterm_finishes_what_is_short_and_hands_over_what_is_long(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", workers=2, drain_s=1, **LONG) as stack:
        readers = read_all(stack, "scripted", ["long one", "long two"], max_tokens=200)
        readers += read_all(stack, "scripted", ["short"], max_tokens=30)
        for reader in readers:
            reader.started.wait(30)
        leaving = eventually("one is busy", lambda: next((w for w in stack.workers if stack.worker_running(w)), None))

        assert leaving.stop() == 0

        for reader in readers:
            reader.join(timeout=60)
            assert reader.error is None
            assert reader.longest_pause_s() < 2
        assert [len(reader.text.split()) for reader in readers] == [200, 200, 30]


@pytest.mark.alone
@pytest.mark.parametrize("stream", [True, False])
def test_20_clients_that_leave_free_their_slots_within_a_second(scripted: Stack, stream: bool) -> None:
    body = {"model": "scripted", "messages": ask("leave"), "max_tokens": 100_000, "stream": stream}
    for _ in range(20):
        with httpx.Client(timeout=30) as client:
            if stream:
                with client.stream("POST", f"{scripted.base}/v1/chat/completions", json=body) as response:
                    lines = response.iter_lines()  # kept: a dropped iterator closes the connection
                    next(lines)
                    eventually("running", scripted.running)
            else:
                asyncio.run(_leave_while_waiting(scripted, body))
        eventually("slot freed", lambda: scripted.running() == 0, seconds=1)


async def _leave_while_waiting(stack: Stack, body: Any) -> None:
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{stack.base}/v1/chat/completions", json=body, timeout=30))
        await asyncio.to_thread(eventually, "running", stack.running)
        asking.cancel()


def test_clients_that_leave_before_their_stream_begins_leave_nothing_behind(scripted: Stack) -> None:
    """They leave while the job waits for room, before the answer's headers, or right after them."""
    body = json.dumps({"model": "scripted", "messages": ask("leave"), "max_tokens": 1_000_000, "stream": True})
    answered = metric(scripted.base, "penstock_http_requests_total")
    request = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    for number in range(100):
        with socket.create_connection(("127.0.0.1", scripted.port)) as connection:
            connection.sendall(f"{request}content-type: application/json\r\n\r\n{body}".encode())
            if number % 3:
                scripted.redis.ping()

    eventually("all answered", lambda: metric(scripted.base, "penstock_http_requests_total") >= answered + 100)
    eventually("no stream is open", lambda: metric(scripted.base, "penstock_open_streams") == 0)
    eventually("nothing runs", lambda: scripted.running() == 0)
    assert scripted.redis.llen("rq:queue:scripted") == 0


def test_a_full_queue_answers_429_with_a_computed_retry_after(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    limits = {"scripted_step_ms": 50, "sequences_max": 1, "queue_jobs_max": 3}
    with running_stack(tmp_path, own_redis, "scripted", **limits) as stack:
        for _ in range(3):
            stack.post({"model": "scripted", "messages": ask("x"), "max_tokens": 2})
        readers = read_all(stack, "scripted", ["one"], max_tokens=40)
        readers[0].started.wait(30)
        readers += read_all(stack, "scripted", ["two", "three", "four"], max_tokens=40)
        eventually("three wait", lambda: stack.redis.llen("rq:queue:scripted") == 3)

        same_tenant = {"authorization": "Bearer none"}
        response = stack.post({"model": "scripted", "messages": ask("too many"), "stream": True}, headers=same_tenant)

        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert metric(stack.base, "penstock_refused_requests_total") == 1
        for reader in readers:
            reader.join(timeout=60)
            assert reader.error is None
            assert reader.finish == "length"


@pytest.mark.parametrize("down_s", [0, 2])
def test_redis_killed_and_restarted_under_load_costs_nothing(
    tmp_path: Path, own_redis: EmbeddedRedis, down_s: float
) -> None:
    with running_stack(tmp_path, own_redis, "scripted", **LONG) as stack:
        readers = read_all(stack, "scripted", ["a", "b", "c", "d"], max_tokens=150)
        for reader in readers:
            reader.started.wait(30)

        stack.restart_redis(down_s=down_s)

        for reader in readers:
            reader.join(timeout=60)
            assert reader.error is None
            assert len(reader.text.split()) == 150
            assert reader.longest_pause_s() < down_s + 3
        undisturbed = read_all(stack, "scripted", ["a", "b", "c", "d"], max_tokens=150)
        expect_whole(undisturbed, [reader.text for reader in readers])


def test_while_redis_is_away_the_api_says_503_with_retry_after(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted") as stack:
        own_redis.kill()

        response = stack.post({"model": "scripted", "messages": ask("x")})

        assert response.status_code == 503
        assert response.json()["error"]["code"] == "redis_unavailable"
        assert response.headers["retry-after"] == "1"
        assert httpx.get(f"{stack.base}/health/live").status_code == 200
        assert httpx.get(f"{stack.base}/health/ready").status_code == 503
        own_redis.start()
        eventually("served again", lambda: stack.post({"model": "scripted", "messages": ask("x")}).status_code == 200)


def test_a_poison_job_fails_at_the_third_lost_lease_and_is_told(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", scripted_step_ms=5, attempts_max=3) as stack:
        reader = Reader(stack, "scripted", "please fault:exit@3", max_tokens=10)
        reader.start()
        for _ in range(3):
            dying = stack.workers[-1]
            eventually("the worker died of it", lambda dying=dying: dying.popen.poll() == 66)  # type: ignore[misc]
            stack.add_worker("scripted")
        reader.join(timeout=30)

        assert isinstance(reader.error, openai.APIError)
        assert reader.error.code == "poison"
        (failed,) = stack.redis.zrange("rq:failed:scripted", 0, -1)
        assert stack.workers[-1].popen.poll() is None
        assert failed


def test_an_engine_that_hangs_ends_its_worker_and_no_job_is_silent(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", step_timeout_s=1, attempts_max=1, **LONG) as stack:
        beside = Reader(stack, "scripted", "beside", max_tokens=150)
        beside.start()
        beside.started.wait(10)
        hung = threading.Thread(target=stack.post, args=[{"model": "scripted", "messages": ask("fault:hang@3")}])
        hung.start()
        (first,) = stack.workers
        assert first.popen.wait(timeout=15) == 70
        # Both jobs have had their one attempt; without that limit the survivor would hang on the same prompt.
        stack.add_worker("scripted")
        hung.join(15)
        beside.join(15)

    assert not hung.is_alive()
    assert beside.error is not None
    assert "died 1 times" in str(beside.error)


def test_without_any_worker_a_job_expires_by_its_queue_deadline(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", queue_deadline_s=0.5, first_event_ms=5000) as stack:
        stack.workers.pop().stop()

        for stream in (True, False):
            response = stack.post({"model": "scripted", "messages": ask("x"), "stream": stream})

            assert response.status_code == 408
            assert response.json()["error"]["code"] == "deadline_exceeded"
        eventually("nothing waits", lambda: stack.redis.llen("rq:queue:scripted") == 0)


def test_jobs_wait_for_a_worker_and_move_to_whoever_has_room(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", sequences_max=2, **LONG) as stack:
        stack.workers.pop().stop()
        readers = read_all(stack, "scripted", list("abcdef"), max_tokens=200)
        eventually("all wait", lambda: stack.redis.llen("rq:queue:scripted") == 6)

        stack.add_worker("scripted")
        stack.add_worker("scripted")

        for reader in readers:
            reader.join(timeout=60)
            assert reader.error is None
        counts = [
            int(stack.redis.hget(key, "successful_job_count") or 0) for key in stack.redis.scan_iter("rq:worker:*")
        ]
        assert sum(counts) == 6
        assert min(counts) >= 1
