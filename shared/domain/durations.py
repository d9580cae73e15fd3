"""Durations as people write them: 30s, 10m, 1h30m, forever."""

import math
import re

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
WHOLE = re.compile(rf"(?:{PART.pattern})+")


def seconds_of(value: object) -> float:
    """Return a duration in seconds: a number of seconds, or a text such as 90s, 10m or 1h30m. `forever` and every
    negative number are infinity, as in Ollama's keep_alive. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return float(value) if value >= 0 else math.inf
    text = str(value).strip()
    if text == "forever" or (text.startswith("-") and _plain(text[1:]) is not None):
        return math.inf
    if (seconds := _plain(text)) is None or isinstance(value, bool):
        raise ValueError("it must be a time like 30s, 10m or 1h30m, a number of seconds, or forever")
    return seconds


def _plain(text: str) -> float | None:
    if WHOLE.fullmatch(text):
        return sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
    return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None
