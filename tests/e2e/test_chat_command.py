"""`penstock chat` without a terminal and with one, on models that are served and on one that is not."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from shared import keys
from tests.e2e.harness import Stack, eventually, running_house

DEAD = "a-model-that-was"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A model that is served, and before it in the list one whose workers are gone, and one that cannot chat."""
    with running_house(tmp_path_factory.mktemp("chat"), "scripted", scripted_tokens=40) as stack:
        _leave_behind(stack.redis, DEAD, "chat completions")
        _leave_behind(stack.redis, "an-embedder", "embeddings")
        yield stack


def _leave_behind(client: redis.Redis, name: str, capabilities: str) -> None:
    about = {"engine": "batched", "context_length": 100, "created_s": 1, "capabilities": capabilities}
    client.hset(keys.model(name), mapping=about)  # type: ignore[arg-type]
    client.sadd(keys.MODELS, name)


def command(stack: Stack, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", "chat", "--url", f"{stack.base}/v1", *arguments]


def test_a_question_on_the_standard_input_is_answered_and_the_command_ends(house: Stack) -> None:
    done = subprocess.run(command(house), input="one\ntwo\n", capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 40
    assert "\x1b" not in done.stdout


def test_an_empty_input_and_an_unknown_model_are_errors(house: Stack) -> None:
    empty = subprocess.run(command(house), input="", capture_output=True, text=True, timeout=60, check=False)
    unknown = subprocess.run(
        command(house, "-m", "nosuch"), input="q", capture_output=True, text=True, timeout=60, check=False
    )

    assert (empty.returncode, empty.stderr) == (2, "penstock: The standard input holds no question.\n")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "'nosuch' does not exist" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_model_that_nobody_serves_is_said_to_wait(house: Stack) -> None:
    ask = command(house, "-m", DEAD)
    with subprocess.Popen(ask, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdin
        assert asking.stderr
        asking.stdin.write("q")
        asking.stdin.close()

        said = asking.stderr.readline()
        asking.send_signal(signal.SIGINT)

        assert said.startswith(f"waiting, no worker serves {DEAD}")
        assert asking.wait(timeout=30) == 130
        assert asking.stderr.read() == "stopped\n"
    eventually("its job is cancelled", lambda: house.redis.llen(keys.queue(DEAD)) == 0)


def test_a_terminal_shows_the_model_that_is_served(house: Stack, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"}
    chat = subprocess.Popen(command(house), stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 30
    try:
        while "/help" not in seen and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536).decode(errors="replace")
    finally:
        chat.kill()
        chat.wait()
        os.close(ours)

    assert "scripted at http" in seen
