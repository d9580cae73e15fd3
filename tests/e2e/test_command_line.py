"""`penstock up`, `penstock chat`, and the oldest openai client that we promise to serve."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from cli.embedded_redis import EmbeddedRedis, free_port
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, eventually, running_house
from tests.e2e.test_faults import ask
from workers.models import BUILTIN as FOLDER

UP_S = 60.0
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Up:
    """`penstock up` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self._out = folder / "up.log"
        with self._out.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "cli", "up", "--port", str(self.port), *arguments],
                cwd=folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    def ready(self) -> bool:
        assert self.popen.poll() is None, self.said
        return "from openai import OpenAI" in self.said

    def interrupt(self) -> int:
        self.popen.send_signal(signal.SIGINT)
        return self.popen.wait(timeout=10)


@contextmanager
def up(folder: Path, *arguments: str) -> Iterator[Up]:
    started = Up(folder, *arguments)
    try:
        eventually("ready", started.ready, seconds=UP_S)
        yield started
    finally:
        if started.popen.poll() is None:
            started.interrupt()


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that run in `folder` or on its data."""
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if str(folder) in line and "ps -eo" not in line]


def test_up_serves_stops_cleanly_and_finds_its_data_again(tmp_path: Path) -> None:
    body = {"model": "scripted", "messages": ask("hi"), "max_tokens": 3}
    with up(tmp_path, "--model", "scripted", "--workers", "2") as first:
        answer = httpx.post(f"http://127.0.0.1:{first.port}/v1/chat/completions", json=body)
        assert answer.status_code == 200
        began = time.monotonic()
        assert first.interrupt() == 0
        assert time.monotonic() - began < 8
    assert processes_of(tmp_path) == []

    with up(tmp_path, "--model", "scripted") as second:
        listed = subprocess.run(
            [sys.executable, "-m", "cli", "jobs", "list"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert answer.json()["id"] in listed.stdout
        assert second.interrupt() == 0


def test_up_restarts_a_killed_worker(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted") as running:
        url = (tmp_path / ".penstock" / "redis.url").read_text().strip()
        with redis.Redis.from_url(url) as client:
            (key,) = client.scan_iter("rq:worker:*")
            pid = client.hget(key, "pid")
            assert pid
            os.kill(int(pid), signal.SIGKILL)
        eventually("told", lambda: "worker 1 died (SIGKILL); started again" in running.said)
        body = {"model": "scripted", "messages": ask("hi"), "max_tokens": 3}
        assert httpx.post(f"http://127.0.0.1:{running.port}/v1/chat/completions", json=body, timeout=30).is_success


def test_kill_9_of_up_leaves_nothing_running(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted") as running:
        running.popen.kill()
        running.popen.wait()

        eventually("all gone", lambda: processes_of(tmp_path) == [], seconds=15)


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    """What `penstock up` says, in one line, when it cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "up", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("penstock: ")]
    return line


def test_what_cannot_start_is_one_clear_sentence(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    taken = str(own_redis.port)

    assert f"port {taken} on 127.0.0.1 is in use" in refused(tmp_path, "--port", taken)
    assert "there is no folder /no/such/model" in refused(tmp_path, "--model", "/no/such/model")
    nobody = f"redis://127.0.0.1:{free_port()}"
    port = str(free_port())
    assert f"no Redis answers at {nobody}" in refused(tmp_path, "--port", port, "--redis-url", nobody)
    assert "PENSTOCK_LEASE_MS" in refused(tmp_path, PENSTOCK_LEASE_MS="soon")
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert "noeviction" in refused(tmp_path, "--port", port, "--redis-url", own_redis.url)
    assert processes_of(tmp_path) == []


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The built-in model, greedy where a request names no sampling: of its sampled stories 1 in 500 has no end."""
    model = tmp_path_factory.mktemp("greedy") / "model"
    shutil.copytree(FOLDER, model)
    config = model / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"top_k": 1}))
    with running_house(model.parent, f"{BUILTIN}={model}") as stack:
        yield stack


@contextmanager
def chatting(stack: Stack, home: Path) -> Iterator[tuple["Screen", subprocess.Popen[bytes]]]:
    """`penstock chat` in a terminal of its own."""
    terminal, theirs = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "cli", "chat", "--url", f"{stack.base}/v1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "HOME": str(home), "TERM": "xterm", "COLUMNS": "100"},
        preexec_fn=lambda: _own_terminal(theirs),
    )
    os.close(theirs)
    screen = Screen(terminal)
    try:
        screen.expect("/help")
        yield screen, chat
    finally:
        chat.kill()
        chat.wait()
        os.close(terminal)


def _own_terminal(terminal: int) -> None:
    """So that Ctrl-C typed there is a signal here."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_chat_streams_undoes_saves_and_leaves(greedy: Stack, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with chatting(greedy, tmp_path) as (screen, chat):
        for typed, shown in [
            ("Hello!", "How can I help you today?"),
            ("/undo", "forgotten"),
            ("What is 2 + 2?", "4."),
            ("/regen", "4."),
            ("/system Be friendly and short.", "system prompt: Be friendly"),
            ("/model", f"model: {BUILTIN}"),
            (f"/save {saved}", "saved to"),
            ("/nonsense", "is no command"),
        ]:
            screen.type(typed)
            screen.expect(shown)
        screen.type("/exit")
        assert chat.wait(timeout=10) == 0
    assert "2 + 2" in saved.read_text()
    assert "Hello" not in saved.read_text()


def test_ctrl_c_stops_the_answer_and_not_the_chat(scripted: Stack, tmp_path: Path) -> None:
    with chatting(scripted, tmp_path) as (screen, chat):
        screen.type("never ends")
        screen.expect(" t")
        eventually("running", scripted.running)

        screen.interrupt()

        screen.expect("stopped")
        eventually("its slot is free", lambda: scripted.running() == 0)
        screen.type("/exit")
        assert chat.wait(timeout=10) == 0


def test_the_readmes_client_runs_as_it_stands(greedy: Stack, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    snippets = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    body = {"model": "penstock-tiny", "messages": [{"role": "user", "content": "Hello!"}]}
    row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))

    done = subprocess.run(
        [sys.executable, "-c", snippets.replace("http://127.0.0.1:8000", greedy.base)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert "The end." in done.stdout
    assert "name='get_weather'" in done.stdout


class Screen:
    """Our end of a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._seen = ""

    def type(self, text: str) -> None:
        self._seen = ""
        os.write(self._terminal, text.encode() + b"\r")

    def interrupt(self) -> None:
        os.write(self._terminal, b"\x03")

    def expect(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0, f"not seen: {text!r} in {self._seen[-2000:]!r}"
            if select.select([self._terminal], [], [], left)[0]:
                raw = os.read(self._terminal, 65536).decode(errors="replace")
                self._seen += COLOURS.sub("", raw)
