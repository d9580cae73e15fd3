"""RQ's command line and ours agree on a real queue."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Stack, eventually, frozen, running_stack
from tests.e2e.test_faults import Reader, ask, read_all

BIN = Path(sys.executable).parent


def rq(stack: Stack, *arguments: str) -> str:
    """Run `rq` with no option but the URL."""
    done = subprocess.run(
        [str(BIN / "rq"), *arguments, "-u", stack.server.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def penstock(stack: Stack, *arguments: str) -> str:
    command = [sys.executable, "-m", "cli", "jobs", "--redis-url", stack.server.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def penstock_top(stack: Stack) -> str:
    command = [sys.executable, "-m", "cli", "top", "--redis-url", stack.server.url, "--once"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def slow(tmp_path: Path, own_redis: EmbeddedRedis) -> Iterator[Stack]:
    with running_stack(
        tmp_path,
        own_redis,
        "scripted",
        sequences_max=1,
        scripted_step_ms=20,
        scripted_tokens=100_000,
        max_tokens="strict",
    ) as stack:
        yield stack


def test_rq_info_shows_waiting_executing_finished_and_failed(slow: Stack) -> None:
    slow.post({"model": "scripted", "messages": ask("done"), "max_tokens": 1})
    slow.post({"model": "scripted", "messages": ask("fault:raise@0")})
    readers = read_all(slow, "scripted", ["a", "b", "c"], max_tokens=100)
    (worker,) = slow.workers
    eventually("one runs", lambda: slow.worker_running(worker) and slow.redis.llen("rq:queue:scripted") == 2)

    with frozen(worker.popen.pid):  # the job makes no progress meanwhile, however long rq takes
        info = rq(slow, "info")

    assert "2, 1 executing, 1 finished, 1 failed" in info
    assert "scripted     |" in info
    assert "busy scripted. jobs: 1 finished, 1 failed" in info
    assert "1 workers, 1 queues" in info
    for reader in readers:
        reader.join(timeout=60)
    eventually("idle again", lambda: "idle scripted. jobs: 4 finished, 1 failed" in rq(slow, "info"))


def test_1000_waiting_jobs_show_as_1000(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted") as stack:
        stack.workers.pop().stop()
        body = {"model": "scripted", "messages": ask("x"), "max_tokens": 1, "stream": True}
        posting = _post_and_hold(stack, body, 1000)

        eventually("all wait", lambda: "1000, 0 executing, 0 finished" in rq(stack, "info"), seconds=60)

        stack.add_worker("scripted")
        eventually("all done", lambda: "0, 0 executing, 1000 finished" in rq(stack, "info"), seconds=60)
        posting.join(timeout=60)
        assert not posting.is_alive()


def _post_and_hold(stack: Stack, body: object, count: int) -> threading.Thread:
    async def post_all() -> None:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            answers = await asyncio.gather(
                *[client.post(f"{stack.base}/v1/chat/completions", json=body) for _ in range(count)]
            )
        assert {answer.status_code for answer in answers} == {200}

    thread = threading.Thread(target=lambda: asyncio.run(post_all()))
    thread.start()
    return thread


def test_rq_requeue_runs_failed_jobs_again(slow: Stack) -> None:
    for _ in range(2):
        slow.post({"model": "scripted", "messages": ask("fault:raise@1"), "max_tokens": 3})
    assert "0, 0 executing, 0 finished, 2 failed" in rq(slow, "info")

    said = rq(slow, "requeue", "--all", "--queue", "scripted")

    assert "Requeueing 2 jobs" in said
    eventually("both failed again", lambda: "jobs: 0 finished, 4 failed" in rq(slow, "info"))
    failed: Any = slow.redis.zrange("rq:failed:scripted", 0, -1)
    assert "both outputs are the same" in penstock(slow, "compare", failed[0].decode())
    assert "0, 0 executing, 0 finished, 2 failed" in rq(slow, "info")


def test_top_counts_what_was_requeued_as_rq_info_does(slow: Stack) -> None:
    for _ in range(2):
        slow.post({"model": "scripted", "messages": ask("fault:raise@1"), "max_tokens": 3})
    running = Reader(slow, "scripted", "never ends", max_tokens=100_000)  # its worker has no room for another
    running.start()
    running.started.wait(30)

    rq(slow, "requeue", "--all", "--queue", "scripted")

    assert "2, 1 executing, 0 finished, 0 failed" in rq(slow, "info")
    titles, counts = [line.split() for line in penstock_top(slow).splitlines()[:2]]
    assert dict(zip(titles[:6], counts[:6], strict=True)) == {
        "MODEL": "scripted",
        "workers": "1",
        "wanted": "1",
        "started": "1",
        "interactive": "0",
        "standard": "2",
    }
    (job_id,) = [line.split()[0] for line in penstock(slow, "list", "--state", "started").splitlines()[1:]]
    penstock(slow, "cancel", job_id)
    running.join(timeout=10)


def test_a_wrong_request_is_in_no_failed_registry_and_not_requeued(slow: Stack) -> None:
    answer = slow.post({"model": "scripted", "messages": ask("long " * 200), "max_tokens": 9_000_000})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    canceled: Any = slow.redis.zrange("rq:canceled:scripted", 0, -1)
    job_id = canceled[0].decode()
    assert "0, 0 executing, 0 finished, 0 failed" in rq(slow, "info")
    assert "Nothing to do" in rq(slow, "requeue", "--all", "--queue", "scripted")
    _, line = penstock(slow, "list").splitlines()
    assert job_id in line
    assert "canceled" in line
    assert "context_length_exceeded" in line
    assert "context_length_exceeded" in penstock(slow, "show", job_id)
    fields: Any = slow.redis.hgetall(f"rq:job:{job_id}")
    assert b"payload" not in fields
    lives: Any = slow.redis.ttl(f"rq:job:{job_id}")
    assert 0 < lives <= 3600


def test_jobs_are_listed_shown_followed_cancelled_and_replayed(slow: Stack) -> None:
    slow.post({"model": "scripted", "messages": ask("secret fault:raise@2"), "max_tokens": 5})
    running = Reader(slow, "scripted", "a", max_tokens=4000)  # it runs until it is cancelled
    running.start()
    running.started.wait(30)
    waiting = Reader(slow, "scripted", "b", max_tokens=5)
    waiting.start()
    eventually("one waits", lambda: slow.redis.llen("rq:queue:scripted") == 1)

    titles, *lines = penstock(slow, "list").splitlines()

    assert titles.split() == ["JOB", "STATE", "MODEL", "ATTEMPTS", "SINCE", "REASON"]
    assert [line.split()[1] for line in lines] == ["failed", "queued", "started"]
    assert [line.index("scripted") for line in lines] == [titles.index("MODEL")] * 3
    listed = {line.split()[1]: line.split()[0] for line in lines}
    shown = penstock(slow, "show", listed["failed"])
    assert "EngineError" in shown
    assert "secret" not in shown
    assert "canceled" in penstock(slow, "cancel", listed["started"], listed["queued"])
    running.join(timeout=10)
    waiting.join(timeout=10)
    assert running.error is not None
    assert getattr(waiting.error, "code", None) == "cancelled"
    assert "[canceled]" in penstock(slow, "tail", listed["started"])
    chosen = ("replay", "--model", "scripted", "--since", "15m", "--error", "engineerror", "--rate", "5/s")
    assert penstock(slow, *chosen, "--tenant", "nobody").strip() == "0 jobs replayed"
    assert "1 job would be replayed" in penstock(slow, *chosen, "--dry-run")
    said = penstock(slow, *chosen)
    assert "1 job replayed" in said
    replayed = said.split()[3]
    eventually("failed again", lambda: "2 failed" in rq(slow, "info").split("jobs:")[1])
    assert f"replayed as  {replayed}" in penstock(slow, "show", listed["failed"])
    assert f"replay of    {listed['failed']}" in penstock(slow, "show", replayed)
    assert "both outputs are the same" in penstock(slow, "compare", replayed)
    history = penstock(slow, "show", replayed)
    assert [line.split()[2] for line in history.splitlines() if line.startswith("history")] == [
        "queued",
        "claimed",
        "failed",
    ]


def test_nothing_a_user_sends_is_where_rq_unpickles(slow: Stack) -> None:
    slow.post({"model": "scripted", "messages": ask("marker-of-the-user fault:raise@0"), "max_tokens": 5})
    (job_id,) = slow.redis.zrange("rq:failed:scripted", 0, -1)
    fields: Any = slow.redis.hgetall(f"rq:job:{job_id.decode()}")  # type: ignore[union-attr]

    assert b"marker-of-the-user" in fields[b"payload"]
    assert json.loads(fields[b"payload"])["v"] == 1
    for name in (b"meta", b"result", b"return_value"):
        assert name not in fields
    assert b"marker-of-the-user" not in fields[b"data"]
