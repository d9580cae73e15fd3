"""Runs `penstock jobs`, `models`, `keys`, `doctor` and `top` on hostile data."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.jobs import LISTED
from shared import rq_view
from shared.domain.codec import encode_event
from shared.domain.lifecycle import TERMINAL, State
from shared.redis import keys
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.factories import delta

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold]x[/bold]"
SPELLED = "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e[bold]x[/bold]"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
AGES = {False: ("older", "newer"), True: ("newer", "older")}  # of those that have not ended, and of those that have
ADMIN = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("operator"), "scripted", admin_key="secret") as stack:
        yield stack


def run(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with the URL after the sub-command."""
    command = [sys.executable, "-m", "cli", *arguments, "--redis-url", stack.server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert not COMMANDS.search(done.stdout + done.stderr)
    return done


def failed_job(stack: Stack) -> str:
    """Make a failed job with hostile output, reason and worker."""
    stack.post({"model": "scripted", "messages": [{"role": "user", "content": "fault:raise@2"}], "max_tokens": 5})
    job_ids: Any = stack.redis.zrange(keys.registry("failed", "scripted"), 0, -1)
    job_id: str = job_ids[-1].decode()
    stack.redis.hset(keys.job(job_id), "worker_name", HOSTILE)
    stack.redis.xadd(keys.results(job_id), {"type": 2, "exc_string": rq_view.traceback_field(f"Traceback\n{HOSTILE}")})
    stack.redis.lset(keys.log(job_id), 1, encode_event(delta(1, HOSTILE)).decode())
    return job_id


def test_job_texts_and_tracebacks_are_shown_plain(stack: Stack) -> None:
    job_id = failed_job(stack)

    shown = run(stack, "jobs", "show", job_id)
    listed = run(stack, "jobs", "list", "--state", "failed")
    tailed = run(stack, "jobs", "tail", job_id)

    assert shown.stdout.count(SPELLED) == 3  # worker, traceback, text
    assert SPELLED in listed.stdout
    assert SPELLED in tailed.stdout
    assert f"There is no job {SPELLED}" in run(stack, "jobs", "show", HOSTILE).stderr


def test_jobs_are_listed_in_the_order_that_help_names(stack: Stack) -> None:
    told = " ".join(run(stack, "jobs", "list", "--help").stdout.split())
    states = [str(state) for state in LISTED]
    for at, state in enumerate(reversed(states)):
        for age in ("older", "newer"):
            job_id = f"order-{state}-{age}"
            iso = f"2026-11-24T10:0{int(age == 'newer')}:00.000000Z"
            fields = {"origin": "order", "status": state, "enqueued_at": iso}
            if state in TERMINAL:
                fields |= {"ended_at": iso}
            stack.redis.hset(keys.job(job_id), mapping=fields)  # type: ignore[arg-type]
            if state == "queued":
                stack.redis.rpush(keys.queue("order"), job_id)
            else:
                stack.redis.zadd(keys.registry(State(state), "order"), {job_id: 2**33 + at + (age == "newer")})
    stack.redis.sadd(keys.QUEUES, keys.queue("order"))

    listed = run(stack, "jobs", "list", "-m", "order")
    limited = run(stack, "jobs", "list", "-m", "order", "--limit", "1")
    as_json = json.loads(run(stack, "jobs", "list", "-m", "order", "--json").stdout)
    stack.redis.srem(keys.QUEUES, keys.queue("order"))
    stack.redis.delete(keys.queue("order"))

    wanted = [f"order-{state}-{age}" for state in states for age in AGES[State(state) in TERMINAL]]
    assert f"The order is: {', '.join(states)}." in told
    assert listed.stdout.split()[:6] == ["JOB", "STATE", "MODEL", "ATTEMPTS", "SINCE", "REASON"]
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == wanted
    assert [line.split()[0] for line in limited.stdout.splitlines()[1:]] == wanted[::2]
    assert [job["id"] for job in as_json] == wanted


def test_lists_come_as_json(stack: Stack) -> None:
    job_id = failed_job(stack)
    run(stack, "keys", "create", HOSTILE)

    jobs = json.loads(run(stack, "jobs", "list", "--json", "--state", "failed").stdout)
    models = json.loads(run(stack, "models", "--json").stdout)
    api_keys = json.loads(run(stack, "keys", "list", "--json").stdout)
    findings = json.loads(run(stack, "doctor", "--json").stdout)

    assert next(job["reason"] for job in jobs if job["id"] == job_id) == HOSTILE
    assert not {"payload", "view", "traceback"} & set(jobs[0])
    assert [(model["name"], model["workers"]) for model in models] == [("scripted", 1)]
    assert models == json.loads(run(stack, "models", "list", "--json").stdout)
    assert HOSTILE in [key["name"] for key in api_keys]
    assert SPELLED in run(stack, "keys", "list").stdout
    assert {"level", "text"} == set(findings[0])


def test_the_url_may_stand_before_and_after_the_sub_command(stack: Stack) -> None:
    before = [sys.executable, "-m", "cli", "models", "--redis-url", stack.server.url, "list"]

    done = subprocess.run(before, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == run(stack, "models", "list").stdout
    assert done.stdout.splitlines()[1].split()[:3] == ["scripted", "ready", "scripted"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("jobs", "replay", "nosuch"), 1, "nosuch not replayed: there is no such job"),
        (("jobs", "replay", "nosuch", "--to-model", "gone"), 2, "The model 'gone' does not exist here."),
        (("jobs", "list", "--limit", "0"), 2, "0 is not in the range 1<=x<=1000"),
        (("jobs", "list", "--model", "nosuch"), 2, "There is no model 'nosuch'. Known models: scripted"),
        (("jobs", "replay", "--model", "nosuch"), 2, "There is no model 'nosuch'. Known models: scripted"),
        (("models", "forget", "nosuch"), 2, "There is no model 'nosuch'. Known models: scripted"),
        (("models", "pause", "nosuch"), 2, "nosuch"),
        (("models", "forget", "scripted"), 2, "scripted is not forgotten: 1 worker serves it (stop it first).\n"),
    ],
)
def test_what_cannot_be_done_is_one_clear_sentence(
    stack: Stack, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = run(stack, *arguments)

    assert done.returncode == status
    assert said in done.stdout + done.stderr


def announce(stack: Stack, name: str) -> None:
    """Announce a model without workers."""
    about = {"engine": "batched", "context_length": 100, "created_s": 1, "capabilities": "chat"}
    stack.redis.hset(keys.model(name), mapping=about)  # type: ignore[arg-type]
    stack.redis.sadd(keys.MODELS, name)
    stack.redis.sadd(keys.QUEUES, keys.queue(name))


def test_a_dead_model_is_forgotten_by_command_and_by_the_admin_api(stack: Stack) -> None:
    for name in ("dead/one", "dead/two"):
        announce(stack, name)

    assert run(stack, "models", "forget", "dead/one").stdout == "dead/one forgotten\n"
    with httpx.Client(base_url=stack.base, headers=ADMIN) as admin:
        refused = admin.delete("/admin/models/scripted")
        gone = admin.delete("/admin/models/dead/two")
        again = admin.delete("/admin/models/dead/two")
        listed = admin.get("/v1/models").json()["data"]

    assert (refused.status_code, gone.status_code, again.status_code) == (400, 200, 404)
    assert refused.json()["error"]["message"].endswith("in use: 1 worker serves it (stop it first).")
    assert [model["id"] for model in listed] == ["scripted"]
    left: Any = stack.redis.keys("*dead/*")
    assert left == []
    queues: Any = stack.redis.smembers(keys.QUEUES)
    assert queues == {keys.queue("scripted").encode()}


def test_forget_tells_apart_what_waits_what_is_kept_and_what_was_forgotten_before(stack: Stack) -> None:
    name = "dead/three"
    announce(stack, name)
    stack.redis.rpush(keys.queue(name), "one")
    waiting = run(stack, "models", "forget", name)
    stack.redis.delete(keys.queue(name))
    stack.redis.zadd(keys.registry("failed", name), {"two": 2**33})

    first, second = run(stack, "models", "forget", name), run(stack, "models", "forget", name)
    stack.redis.delete(keys.registry("failed", name))
    stack.redis.srem(keys.QUEUES, keys.queue(name))

    assert waiting.stderr == f"penstock: {name} is not forgotten: 1 job waits or runs (cancel it first).\n"
    kept = f"1 failed job is kept until it expires (`penstock jobs list --model {name}`)"
    assert first.stdout == f"{name} forgotten; {kept}\n"
    assert second.stdout == f"{name} was already forgotten; {kept}\n"


def test_doctor_warns_of_failed_jobs_and_of_a_model_that_nobody_serves(stack: Stack) -> None:
    name = "dead/four"
    announce(stack, name)
    stack.redis.zadd(keys.registry("failed", name), {"one": 2**33, "two": 2**33})

    said = run(stack, "doctor")
    stack.redis.delete(keys.registry("failed", name))
    run(stack, "models", "forget", name)

    warnings = [line for line in said.stdout.splitlines() if line.startswith("!!") and name in line]
    assert said.returncode == 0
    assert len(warnings) == 2
    assert f"no worker serves it: start one with `penstock worker --model {name}`" in warnings[0]
    assert "2 failed jobs are kept" in warnings[1]
    assert f"`penstock jobs replay -m {name}`" in warnings[1]


def test_q_leaves_top(stack: Stack, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "top", "--redis-url", stack.server.url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    top = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()
    try:
        os.set_blocking(ours, False)
        eventually("it draws", lambda: b"scripted" in _read(ours, seen))
        os.write(ours, b"q")
        eventually("it ends", lambda: (_read(ours, seen), top.poll())[1] is not None)
    finally:
        top.kill()
        top.wait()
        os.close(ours)

    assert top.returncode == 0
    assert b"Traceback" not in seen


def _read(terminal: int, seen: bytearray) -> bytearray:
    with suppress(OSError):  # nothing there, or the other end is closed
        seen += os.read(terminal, 65536)
    return seen
