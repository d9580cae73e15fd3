"""`penstock chat` without a terminal and with one, on models that are served and on one that is not."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import redis

from shared.redis import keys
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.screen import Emulator

DEAD = "a-model-that-was"
ROWS = 24


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a served model, listed after one without workers and one that cannot chat."""
    with standalone_stack(tmp_path_factory.mktemp("chat"), "scripted", scripted_tokens=40) as stack:
        _leave_behind(stack.redis, DEAD, "chat completions")
        _leave_behind(stack.redis, "an-embedder", "embeddings")
        yield stack


def _leave_behind(client: redis.Redis, name: str, capabilities: str) -> None:
    about = {"engine": "batched", "context_length": 100, "created_s": 1, "capabilities": capabilities}
    client.hset(keys.model(name), mapping=about)  # type: ignore[arg-type]
    client.sadd(keys.MODELS, name)


def command(stack: Stack, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", "chat", "--url", f"{stack.base}/v1", *arguments]


def test_a_question_on_the_standard_input_is_answered_and_the_command_ends(stack: Stack) -> None:
    done = subprocess.run(command(stack), input="one\ntwo\n", capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 40
    assert "\x1b" not in done.stdout


def test_an_empty_input_and_an_unknown_model_are_errors(stack: Stack) -> None:
    empty = subprocess.run(command(stack), input="", capture_output=True, text=True, timeout=60, check=False)
    unknown = subprocess.run(
        command(stack, "-m", "nosuch"), input="q", capture_output=True, text=True, timeout=60, check=False
    )

    assert (empty.returncode, empty.stderr) == (2, "penstock: Standard input is empty: it must hold a question.\n")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "'nosuch' does not exist" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def ask(stack: Stack, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `penstock ask`, with a text piped in if one is given."""
    line = [sys.executable, "-m", "cli", "ask", "--url", f"{stack.base}/v1", *arguments]
    piped = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(line, **piped, capture_output=True, text=True, timeout=60, check=False)


def test_one_question_is_asked_with_what_is_piped_in_after_it(stack: Stack) -> None:
    alone = ask(stack, "--set", "store=true", "--system", "Be brief.", "What", "is", "3 + 4?")
    piped = ask(stack, "--set", "store=true", "Summarize this.", given="one\ntwo\n")

    assert (alone.returncode, alone.stderr, len(alone.stdout.split())) == (0, "", 40)
    assert (piped.returncode, piped.stderr, len(piped.stdout.split())) == (0, "", 40)
    client = stack.client()
    kept = [client.chat.completions.messages.list(each.id).data for each in client.chat.completions.list(order="asc")]
    assert [[message.content for message in messages] for messages in kept] == [
        ["Be brief.", "What is 3 + 4?"],
        ["Summarize this.\n\none\ntwo"],
    ]


def test_a_parameter_that_is_set_reaches_the_server(stack: Stack) -> None:
    short = ask(stack, "--set", "max_tokens=5", "hi")
    wrong = ask(stack, "--set", "temperature=9", "hi")
    no_assignment = ask(stack, "--set", "temperature", "hi")
    nothing = ask(stack)

    assert (short.returncode, len(short.stdout.split())) == (0, 5)
    assert wrong.returncode == 1
    assert "temperature" in wrong.stderr
    assert (no_assignment.returncode, no_assignment.stderr) == (
        2,
        "penstock: --set: 'temperature' is not NAME=VALUE, such as temperature=0.7\n",
    )
    assert (nothing.returncode, nothing.stderr) == (2, "penstock: Standard input is empty: it must hold a question.\n")


def test_a_parameter_is_set_in_the_terminal(stack: Stack, tmp_path: Path) -> None:
    with in_terminal(command(stack), tmp_path) as (terminal, _):
        eventually("it greets", lambda: "scripted at http" in terminal.raw())
        terminal.type("/set temperature 9\r")
        eventually("it is set", lambda: "parameters: temperature 9" in terminal.raw())
        terminal.type("hi\r")
        eventually("the server refuses it", lambda: "less than or equal to 2" in terminal.raw())
        terminal.type("/set model other\r")

        eventually("it is refused", lambda: "'model' is not a parameter that can be set" in terminal.raw())


def test_a_model_that_nobody_serves_is_said_to_wait(stack: Stack) -> None:
    ask = command(stack, "-m", DEAD)
    with subprocess.Popen(ask, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdin
        assert asking.stderr
        asking.stdin.write("q")
        asking.stdin.close()

        said = asking.stderr.readline()
        asking.send_signal(signal.SIGINT)

        assert said.startswith(f"waiting: no worker serves {DEAD}")
        assert asking.wait(timeout=30) == 130
        assert asking.stderr.read() == "stopped\n"
    eventually("its job is cancelled", lambda: stack.redis.llen(keys.queue(DEAD)) == 0)


def test_a_terminal_shows_the_model_that_is_served(stack: Stack, tmp_path: Path) -> None:
    with in_terminal(command(stack), tmp_path) as (terminal, _):
        eventually("it greets", lambda: "scripted at http" in terminal.raw())


def asked(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `penstock chat` with a question on standard input. `environment` sets OPENAI_API_KEY."""
    usual = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    chat = [sys.executable, "-m", "cli", "chat", *arguments]
    done = subprocess.run(
        chat, input="hi", env=usual | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("path", ["", "/", "/v1/"])
def test_a_url_is_tried_with_v1_where_it_lacks_it(stack: Stack, path: str) -> None:
    done = asked("--url", stack.base + path)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 40


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "has no scheme: write http://localhost:8000 or https://localhost:8000"),
        ("127.0.0.1:8000/v1", "has no scheme: write http://127.0.0.1:8000/v1 or"),
        ("http://", "does not name a server"),
        ("ftp://127.0.0.1/v1", "does not name a server"),
        ("http://[::1/v1", "is not a URL"),
    ],
)
def test_a_url_that_cannot_be_one_is_said_to_be_so(url: str, said: str) -> None:
    done = asked("--url", url)

    assert done.returncode == 2
    assert done.stderr.startswith(f"penstock: --url: {url} ")
    assert said in done.stderr


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start an API that requires keys, without any key."""
    with standalone_stack(tmp_path_factory.mktemp("guarded"), "scripted", workers=0, keys="required") as stack:
        yield f"{stack.base}/v1"


def test_who_gives_no_key_or_a_wrong_one_learns_how_to_give_one(guarded: str) -> None:
    missing = asked("--url", guarded)
    wrong = asked("--url", guarded, "--api-key", "sk-wrong")
    by_variable = asked("--url", guarded.removesuffix("/v1"), OPENAI_API_KEY="sk-wrong")

    for done in (missing, wrong, by_variable):
        assert done.returncode == 2
        assert "--api-key KEY or in the variable OPENAI_API_KEY" in done.stderr
        assert "sk-wrong" not in done.stderr
    assert f"The server at {guarded} requires an API key" in missing.stderr
    assert f"The server at {guarded} refuses this API key" in wrong.stderr
    assert f"The server at {guarded.removesuffix('/v1')} refuses this API key" in by_variable.stderr


def test_what_is_no_api_is_said_to_be_none(html: str) -> None:
    done = asked("--url", html)

    assert done.returncode == 2
    assert f"does not list its models at {html} or {html}/v1: the response is not a list of models" in done.stderr


ITEMS = 70
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[red]x[/red]"
SPELLED = "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e"


class Elsewhere(BaseHTTPRequestHandler):
    """Another OpenAI-compatible server: its answer is an error, or endless with a list longer than the screen first."""

    going_on: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": HOSTILE, "object": "model", "created": 1, "owned_by": "x"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "fail" in asked["messages"][-1]["content"]:
            self._send(400, {"error": {"message": f"No: {HOSTILE}", "type": "x"}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for n in range(1, ITEMS + 1):
            self._piece(f"{n}. This is item number {n}\n")
        self._piece(f"\nAt last {HOSTILE}")
        self.going_on.wait(30)

    def _piece(self, text: str) -> None:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "x", "choices": [choice]}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _send(self, status: int, body: object) -> None:
        told = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        pass


class Page(BaseHTTPRequestHandler):
    """A server that returns the same page for every path."""

    def do_GET(self) -> None:
        page = b"<html>Welcome</html>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def html() -> Iterator[str]:
    with serving(Page) as url:
        yield url


@pytest.fixture
def elsewhere() -> Iterator[str]:
    Elsewhere.going_on.clear()
    with serving(Elsewhere) as url:
        yield f"{url}/v1"
        Elsewhere.going_on.set()


def test_a_long_answer_stands_on_the_screen_once_also_when_it_is_interrupted(elsewhere: str, tmp_path: Path) -> None:
    chat = [sys.executable, "-m", "cli", "chat", "--url", elsewhere]
    with in_terminal(chat, tmp_path) as (terminal, process):
        eventually("it greets", lambda: "(/help)" in terminal.raw())
        terminal.type("list\r")
        eventually("all has come", lambda: "At last" in terminal.raw())
        terminal.type("\x03")
        eventually("it stops", lambda: "stopped" in terminal.raw())
        terminal.type("fail\r")
        eventually("the error is told", lambda: "No: " in terminal.raw())
        terminal.type("/exit\r")
        eventually("it ends", lambda: (terminal.raw(), process.poll())[1] is not None)

    seen = terminal.raw()
    screen = Emulator(ROWS)
    screen.feed(seen)
    assert process.returncode == 0
    assert [line.strip() for line in screen.lines if "item number" in line] == [
        f"{n} This is item number {n}" for n in range(1, ITEMS + 1)
    ]
    assert sum("At last" in line for line in screen.lines) == 1
    assert "Traceback" not in seen
    assert seen.count(SPELLED) >= 3  # the model's name, its words and the server's error
    assert "\x1b[2J" not in seen.replace("\x1b[2J\x1b[H", "")
    assert "\x9b" not in seen
    assert "\u202e" not in seen


class Terminal:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = bytearray()

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def raw(self) -> str:
        """Return everything that the terminal got."""
        with suppress(OSError):  # nothing there, or the other end is closed
            while read := os.read(self._descriptor, 65536):
                self._seen += read
        return self._seen.decode(errors="replace")


@contextmanager
def in_terminal(command: list[str], home: Path) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, 80, 0, 0))
    os.set_blocking(ours, False)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"HOME": str(home), "TERM": "xterm"}

    def own_terminal() -> None:  # Ctrl-C typed in the terminal becomes a signal
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=own_terminal
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        process.kill()
        process.wait()
        os.close(ours)
