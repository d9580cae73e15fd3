"""Logs: one JSON object a line. No prompt, no answer and no key ever goes into one."""

import logging
import sys
import time
from typing import Any

import orjson

from shared.tracing import trace_id

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A fixed message, the trace it belongs to, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traced := trace_id():
            fields["trace_id"] = traced
        fields |= {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy, loud in (("httpx", "WARNING"), ("uvicorn.access", "WARNING"), ("bitsandbytes", "ERROR")):
        logging.getLogger(noisy).setLevel(loud)
