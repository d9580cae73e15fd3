"""`penstock chat`, and the oldest openai client that we promise to serve."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.documents import DOCUMENTS, blocks
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, eventually, standalone_stack
from workers.loading.model_spec import BUILTIN as FOLDER

COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the built-in model with greedy sampling by default, since 1 in 500 of its sampled stories never ends."""
    model = tmp_path_factory.mktemp("greedy") / "model"
    shutil.copytree(FOLDER, model)
    config = model / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"top_k": 1}))
    with standalone_stack(model.parent, f"{BUILTIN}={model}") as stack:
        yield stack


@contextmanager
def chatting(stack: Stack, home: Path) -> Iterator[tuple["Screen", subprocess.Popen[bytes]]]:
    """Run `penstock chat` in a terminal of its own."""
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
    """Make the terminal the controlling one, so that Ctrl-C typed in it is a signal."""
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
            ("/nonsense", "is not a command"),
        ]:
            screen.type(typed)
            screen.expect(shown)
        screen.type("/exit")
        assert chat.wait(timeout=10) == 0
    assert "2 + 2" in saved.read_text()
    assert "Hello" not in saved.read_text()
    assert (tmp_path / ".penstock_history").stat().st_mode & 0o077 == 0


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


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("README.md", r"\AOnce upon a time.*The end\."),
        ("docs/clients.md", r"name='get_weather'"),
        ("docs/batches.md", r'completed 3\n(?:.*"custom_id": "\d".*"3 \+ 4 = 7\."[^\n]*\n){3}'),
    ],
)
def test_the_python_of_a_document_runs_as_it_stands(greedy: Stack, tmp_path: Path, document: str, said: str) -> None:
    snippets = "\n".join(blocks(ROOT / document, "python"))

    done = subprocess.run(
        [sys.executable, "-c", snippets.replace("http://127.0.0.1:8000", greedy.base)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout, re.DOTALL), done.stdout


def test_all_python_of_the_documents_is_run() -> None:
    written = {str(path.relative_to(ROOT)) for path in DOCUMENTS if blocks(path, "python")}

    assert written == {"README.md", "docs/clients.md", "docs/batches.md"}


class Screen:
    """The test's end of a terminal."""

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
