"""A server's log is JSON, one object per line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.observability.logs import refusal

SAID = """
import logging, sys, threading, warnings
from shared.observability.logs import configure_logging
configure_logging("INFO")
log = logging.getLogger("ours")
log.info("fields", extra={"large": 2**70, "half": "\\ud800", "odd": {(1, 2): object()}})
log.info("bad %d", "argument")
log.info("two\\nlines", stack_info=True)
warnings.warn("beware")
print("begun ", end="", file=sys.stderr)
print("and ended\\rprogress\\n\\n", file=sys.stderr)
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
class Fails:
    def __del__(self): raise ValueError("in del")
Fails()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("at last\\nin two lines")
"""


def test_nothing_but_json_leaves_a_server() -> None:
    done = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, check=False)

    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stderr.splitlines()]
    said = [(line["logger"], line["message"]) for line in lines]
    assert said[:3] == [("ours", "fields"), ("ours", "bad %d ('argument',)"), ("ours", "two\nlines")]
    assert lines[0]["large"] == 2**70
    assert "stack" in lines[2]
    assert said[3][0] == "py.warnings"
    assert "beware" in said[3][1]
    assert said[4:7] == [
        ("stderr", "begun and ended"),
        ("stderr", "progress"),
        ("uvicorn.error", "Invalid HTTP request received."),
    ]
    assert said[7:] == [("penstock", "uncaught exception")] * 3
    for line, reason in zip(lines[7:], ("in del", "ZeroDivisionError", "RuntimeError: at last"), strict=True):
        assert reason in line["traceback"]
    assert done.returncode == 1


def test_a_server_that_cannot_run_says_so_in_a_line_that_its_starter_understands(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "api"]
    settings = {"PENSTOCK_LEASE_MS": "soon", "PYTHONPATH": ":".join(sys.path)}

    done = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=tmp_path, check=False)

    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert json.loads(line)["level"] == "ERROR"
    assert refusal(line).startswith("PENSTOCK_LEASE_MS: ")
    assert refusal("penstock: no room") == "no room"
    assert refusal('{"logger": "penstock", "level": "CRITICAL", "message": "uncaught exception"}') == ""
    assert refusal("[]") == refusal("no JSON") == ""


def test_unknown_variables_are_told_once_with_the_nearest_name(tmp_path: Path) -> None:
    wrong = {"PENSTOCK_LESE_MS": "5", "PENSTOCK_QQQQ": "x", "PENSTOCK_TENANT_WEIGHTS": "refused"}
    environment = {**wrong, "PENSTOCK_REDIS_URL": "redis://127.0.0.1:1", "PYTHONPATH": ":".join(sys.path)}

    def said(*arguments: str) -> list[str]:
        command = [sys.executable, "-m", "cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        return done.stderr.splitlines()

    api, listing = said("api"), said("jobs", "list")

    nearest = "PENSTOCK_LESE_MS is not a setting of Penstock; did you mean PENSTOCK_LEASE_MS?"
    unlike = "PENSTOCK_QQQQ is not a setting of Penstock, whose settings are listed in docs/settings.md"
    assert [json.loads(line)["message"] for line in api][:2] == [nearest, unlike]
    assert len(api) == 3
    assert listing[:2] == [f"warning: {nearest}", f"warning: {unlike}"]
    assert len(listing) == 3
