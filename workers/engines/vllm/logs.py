"""vLLM's log lines, of all of its processes, in the form of Penstock's own."""

import json
import os
import tempfile
from pathlib import Path


def log_as_we_do(level: str) -> None:
    """vLLM reads a logging configuration for each of its processes from a file. One that the operator names stays."""
    if "VLLM_LOGGING_CONFIG_PATH" in os.environ:
        return
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"class": "shared.observability.logs.JsonLines"}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.__stderr__"}
        },
        "loggers": {"vllm": {"handlers": ["lines"], "level": level, "propagate": False}},
    }
    path = Path(tempfile.mkdtemp(prefix="penstock-vllm-")) / "logging.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(path)
