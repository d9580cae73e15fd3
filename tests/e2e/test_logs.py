"""The logs of a whole stack are JSON: from loading a model to stopping, whatever a client sends."""

import json
import socket
from pathlib import Path

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import running_house


def test_every_line_of_every_process_is_json(tmp_path: Path) -> None:
    with running_stack(tmp_path, "builtin") as stack:
        hello = [{"role": "user", "content": "Hello!"}]
        assert stack.post({"model": BUILTIN, "messages": hello, "max_tokens": 2}).status_code == 200
        with socket.create_connection(("127.0.0.1", stack.port)) as garbage:
            garbage.sendall(b"\x16\x03\x01 no HTTP \r\n\r\n")
            garbage.recv(100)
        stack.stop()

        lines = [line for path in tmp_path.glob("*.log") for line in path.read_text().splitlines()]

    messages = {json.loads(line)["message"] for line in lines}
    assert {"model loaded", "job ended", "answered", "Invalid HTTP request received."} <= messages
