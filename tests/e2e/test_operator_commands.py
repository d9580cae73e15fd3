"""`penstock jobs`, `models`, `keys`, `doctor` and `top` as an operator types them, on data that others wrote."""

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

from shared import rq_view
from shared.domain.codec import encode_event
from shared.redis import keys
from tests.e2e.harness import Stack, eventually, running_house
from tests.factories import delta

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold]x[/bold]"
SPELLED = "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e[bold]x[/bold]"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ADMIN = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("operator"), "scripted", admin_key="secret") as stack:
        yield stack


def run(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The URL goes behind the sub-command."""
    command = [sys.executable, "-m", "cli", *arguments, "--redis-url", stack.server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert not COMMANDS.search(done.stdout + done.stderr)
    return done


def failed_job(stack: Stack) -> str:
    """With a hostile model's words, reason and worker."""
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
    assert done.stdout.startswith("scripted  scripted  context")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("jobs", "replay", "nosuch"), 1, "nosuch not replayed: there is no such job"),
        (("jobs", "list", "--limit", "0"), 2, "0 is not in the range 1<=x<=1000"),
        (("jobs", "list", "--model", "nosuch"), 2, "There is no model 'nosuch' here; known: scripted"),
        (("jobs", "replay", "--model", "nosuch"), 2, "There is no model 'nosuch' here; known: scripted"),
        (("models", "forget", "nosuch"), 2, "There is no model 'nosuch' here; known: scripted"),
        (("models", "pause", "nosuch"), 2, "nosuch"),
        (("models", "forget", "scripted"), 2, "it has 0 jobs that wait or run and 1 workers"),
    ],
)
def test_what_cannot_be_done_is_one_clear_sentence(
    stack: Stack, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = run(stack, *arguments)

    assert done.returncode == status
    assert said in done.stdout + done.stderr


def test_a_dead_model_is_forgotten_by_command_and_by_the_admin_api(stack: Stack) -> None:
    for name in ("dead/one", "dead/two"):
        about = {"engine": "batched", "context_length": 100, "created_s": 1, "capabilities": "chat"}
        stack.redis.hset(keys.model(name), mapping=about)  # type: ignore[arg-type]
        stack.redis.sadd(keys.MODELS, name)
        stack.redis.sadd(keys.QUEUES, keys.queue(name))

    assert run(stack, "models", "forget", "dead/one").stdout == "dead/one forgotten\n"
    with httpx.Client(base_url=stack.base, headers=ADMIN) as admin:
        refused = admin.delete("/admin/models/scripted")
        gone = admin.delete("/admin/models/dead/two")
        again = admin.delete("/admin/models/dead/two")
        listed = admin.get("/v1/models").json()["data"]

    assert (refused.status_code, gone.status_code, again.status_code) == (400, 200, 404)
    assert "1 workers" in refused.json()["error"]["message"]
    assert [model["id"] for model in listed] == ["scripted"]
    left: Any = stack.redis.keys("*dead/*")
    assert left == []
    queues: Any = stack.redis.smembers(keys.QUEUES)
    assert queues == {keys.queue("scripted").encode()}


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
