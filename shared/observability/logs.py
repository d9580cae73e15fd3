"""Logs: one JSON object a line, from our code, libraries, warnings, uncaught exceptions and anything written to the
standard error. No prompt, answer or key is ever logged."""

import io
import json
import logging
import re
import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

import orjson

from shared.observability.tracing import trace_id

REFUSES = "penstock"  # the logger of a process that says why it cannot run
WRITTEN_MAX = 10_000  # characters of a line written to the standard error
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """Formats a record as a fixed message, its trace id, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if traced := trace_id():
            fields["trace_id"] = traced
        fields |= {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        try:
            return orjson.dumps(fields, default=str).decode()
        except TypeError:  # a number of more than 64 bits, half a character, a key that is no text
            return json.dumps(fields, default=str, skipkeys=True)


def _message(record: logging.LogRecord) -> str:
    """Return the message; if a library's arguments do not fit its format string, return both unformatted."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args!r}"


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error: with the standard error closed or full, no place is left to report it."""


class _Written(io.TextIOBase):
    """A standard error for code that does not log: it turns each line into a record."""

    def __init__(self) -> None:
        self._begun = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = re.split(r"[\r\n]", self._begun + text)
            if len(self._begun) > WRITTEN_MAX:
                lines, self._begun = [*lines, self._begun], ""
        for line in lines:
            if line.strip():
                logging.getLogger("stderr").warning(line[:WRITTEN_MAX].rstrip())
        return len(text)


def configure_logging(level: str) -> None:
    """Log JSON only from now on, whatever Python code writes. A server calls this at its start."""
    handler = _Handler(sys.__stderr__)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy, loud in (("httpx", "WARNING"), ("uvicorn.access", "WARNING"), ("bitsandbytes", "ERROR")):
        logging.getLogger(noisy).setLevel(loud)
    logging.captureWarnings(capture=True)
    sys.stderr = _Written()
    sys.excepthook = _uncaught
    threading.excepthook = lambda died: _uncaught(died.exc_type, died.exc_value, died.exc_traceback)
    sys.unraisablehook = lambda met: _uncaught(met.exc_type, met.exc_value, met.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, at: TracebackType | None) -> None:
    logging.getLogger(REFUSES).critical("uncaught exception", exc_info=(kind, error or kind(), at))


def refusal(line: str) -> str:
    """Return why a process refuses to run, if this line of its output says so; else ""."""
    if line.startswith("penstock: "):
        return line.removeprefix("penstock: ")
    try:
        fields = json.loads(line)
    except ValueError:
        return ""
    told = isinstance(fields, dict) and fields.get("logger") == REFUSES and fields.get("level") == "ERROR"
    return str(fields["message"]) if told else ""
