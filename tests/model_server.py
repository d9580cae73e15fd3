"""A small server of one model, started by a command as llama-server is: `tests/model_server.py PORT [FLAG ..]`.
It says numbers, one every 20 ms, and does what its flags say:

--late SECONDS   /health answers 503 for so long
--die TEXT       it prints the text, and ends with status 3 before it listens
--child FILE     it starts a child that ignores SIGTERM, and writes the child's number into the file
--chatty         it prints 500 lines at once
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STEP_S = 0.02
WORDS = 200
STUBBORN = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
sick = threading.Event()


def value(flag: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else ""


READY_FROM = time.monotonic() + float(value("--late") or 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer({}, 503 if sick.is_set() or time.monotonic() < READY_FROM else 200)
        elif self.path == "/v1/models":
            self._answer({"object": "list", "data": [{"id": "numbers.gguf", "owned_by": "llamacpp"}]})
        else:
            self._answer({"error": {"message": "no such route"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/sick":
            sick.set()
            self._answer({})
        elif body["model"] != "numbers.gguf":
            self._answer({"error": {"message": f"there is no model {body['model']}"}}, 404)
        elif "die" in body["messages"][-1]["content"]:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self._count(min(body.get("max_tokens") or WORDS, WORDS))

    def _count(self, numbers: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(numbers):
            self._event({"choices": [{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}]})
            time.sleep(STEP_S)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def log_message(self, format: str, *args: object) -> None:
        say(format % args)

    def _event(self, event: object) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _answer(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    if value("--die"):
        say(value("--die"))
        sys.exit(3)
    if value("--child"):
        child = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        with open(value("--child"), "w") as file:
            file.write(str(child.pid))
    if "--chatty" in sys.argv:
        say("\n".join(f"line {number}" for number in range(500)))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
