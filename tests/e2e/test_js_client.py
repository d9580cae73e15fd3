"""The JavaScript client in Node and in Chromium: an answer goes on when a worker or an API is killed in its middle, and
when its page is loaded again."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lacking
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.e2e.test_clients import CLIENTS, ROOT

FILES = {
    "/": (CLIENTS / "penstock_js.html", "text/html"),
    "/penstock.js": (ROOT / "clients/js/penstock.js", "text/javascript"),
}
BODY: dict[str, Any] = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "the whole"}],
    "max_tokens": 400,
    "temperature": 0,
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    settings: dict[str, Any] = {"scripted_step_ms": 8, "scripted_tokens": 100_000, "max_tokens": "strict"}
    with standalone_stack(tmp_path, "scripted", workers=2, **settings) as running:
        yield running


def program(*names: str) -> str:
    """Return the first of these programs that is installed."""
    return next(filter(None, map(shutil.which, names)), None) or lacking(" or ".join(names))


def kill_busy_worker(stack: Stack) -> None:
    busy = eventually("a worker runs it", lambda: [each for each in stack.workers if stack.worker_running(each)])
    busy[0].kill()


def kill_api(stack: Stack) -> None:
    assert stack.api
    stack.api.kill()


def test_an_answer_goes_on_in_node(stack: Stack) -> None:
    bases = f"{stack.base}/v1,{stack.start_api()[1]}/v1"
    command = [program("node"), str(CLIENTS / "penstock_js.js"), bases]
    faults = {"kill worker": kill_busy_worker, "kill api": kill_api}
    told = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as node:
        assert node.stdout
        assert node.stderr
        for line in node.stdout:
            told.append(line.strip())
            if line.strip() in faults:
                faults[line.strip()](stack)
        assert node.wait(60) == 0, node.stderr.read()
    assert told == ["kill worker", "kill api", "done"]


class Page(BaseHTTPRequestHandler):
    """Serves the page and the client, and takes what the page posts."""

    def __init__(self, *arguments: Any, posted: dict[str, Any], **options: Any) -> None:
        self._posted = posted
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        path, kind = FILES.get(self.path.partition("?")[0], (None, ""))
        self.send_response(200 if path else 404)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(path.read_bytes() if path else b"")

    def do_POST(self) -> None:
        self._posted[self.path] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page() -> Iterator[tuple[str, dict[str, Any]]]:
    posted: dict[str, Any] = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, posted=posted)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


def test_an_answer_goes_on_in_a_page_that_is_loaded_again(
    stack: Stack, page: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, posted = page
    expected = stack.post(BODY).json()["choices"][0]["message"]["content"]
    bases = f"{stack.base}/v1,{stack.start_api()[1]}/v1"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    command = [
        program("chromium", "chromium-browser", "google-chrome"),
        *options,
        f"--user-data-dir={tmp_path / 'chromium'}",
        f"{url}?bases={bases}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as chromium:
        try:
            eventually("the page goes on", lambda: "/kill" in posted or "/result" in posted, seconds=60)
            kill_busy_worker(stack)
            kill_api(stack)
            eventually("the page has its answer", lambda: "/result" in posted, seconds=60)
        finally:
            chromium.terminate()

    assert posted["/result"] == {"text": expected, "again": True}
