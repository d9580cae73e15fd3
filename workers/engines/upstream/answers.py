"""An upstream's answer without a stream is read here: its status, its Retry-After, the text of its error. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy, UpstreamError, UpstreamRefused

BUSY = frozenset({429, 503, 529})  # 529 is Anthropic's and Kimi's "overloaded"
AT_FAULT = frozenset({400, 413, 422})
UNPAID = frozenset({401, 402, 403})  # their messages may show a part of the key
PASSING = frozenset({408, 502, 504, 520, 521, 522, 523, 524})  # said by a proxy that gets no answer itself
SPARK_BUSY, SPARK_AT_FAULT = frozenset({10007, 11202, 11203}), frozenset({10003, 10004, 10005, 10013, 10907})
MINIMAX_BUSY, MINIMAX_AT_FAULT = frozenset({1002, 1041}), frozenset({1026, 1027, 1039, 2013})
RETRY_AFTER_S, RETRY_AFTER_S_MAX = 1.0, 600.0
MESSAGE_MAX = 500
TOO_LONG = (
    "context_length_exceeded",
    "string_above_max_length",
    "maximum context length",
    "maximum model length",
    "prompt is too long",
)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The error behind an answer whose status is not 200."""
    code, message, param = described(body)
    if status in BUSY:
        return UpstreamBusy(f"answers {status}: {message}", retry_after_s=retry_after_s(headers))
    if status in UNPAID:
        what = "the key of this worker" if status != 403 else "the key of this worker, or what it asks for"
        return UpstreamBroken(f"answers {status}: it refuses {what}", final=True)
    if status in AT_FAULT:
        return UpstreamRefused(message, code=_slug(code, message), param=param)
    return UpstreamBroken(f"answers {status}: {message}", final=status not in PASSING)


def error_in_stream(error: Any) -> UpstreamError:
    """The error that an upstream puts into its stream, in the shape of OpenAI's, after its status was 200."""
    code, message, param = described(orjson.dumps({"error": error}))
    status = code if code.isdecimal() else ""
    if status in map(str, AT_FAULT) or code in ("invalid_request_error", "BadRequestError", *TOO_LONG):
        return UpstreamRefused(message, code=_slug(code, message), param=param)
    if status in map(str, BUSY) or code in ("rate_limit_error", "rate_limit_exceeded", "overloaded_error"):
        return UpstreamBusy(f"has no room: {message}", retry_after_s=RETRY_AFTER_S)
    return UpstreamBroken(f"ends its stream with an error: {message}")


def failure_in(chunk: Mapping[str, Any]) -> UpstreamError | None:
    """The failure that a chunk of status 200 may be: OpenAI's `error`, Spark's `code`, MiniMax's `base_resp`."""
    if error := chunk.get("error"):
        return error_in_stream(error)
    if isinstance(code := chunk.get("code"), int) and code and not chunk.get("choices"):
        kind = "rate_limit_error" if code in SPARK_BUSY else "400" if code in SPARK_AT_FAULT else str(code)
        return error_in_stream({"code": kind, "message": f"{chunk.get('message', '')} ({code})"})
    if isinstance(base := chunk.get("base_resp"), dict) and (code := base.get("status_code")):
        kind = "rate_limit_error" if code in MINIMAX_BUSY else "400" if code in MINIMAX_AT_FAULT else str(code)
        return error_in_stream({"code": kind, "message": f"{base.get('status_msg', '')} ({code})"})
    return None


def described(body: bytes) -> tuple[str, str, str | None]:
    """Code, message and parameter of an error. Every upstream has a shape of its own; what is none of them is shown as
    it came, but not at length."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = body.decode("utf-8", "replace")
    content = content[0] if isinstance(content, list) and content else content  # Gemini's lists
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return "", str(error)[:MESSAGE_MAX] or "nothing", None
    message = error.get("message") or error.get("detail") or error.get("error_msg") or error
    code = error.get("code") or error.get("type") or error.get("error_code") or ""
    param = error.get("param")
    return str(code), str(message)[:MESSAGE_MAX], param if isinstance(param, str) else None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return how long to wait, by `retry-after-ms` or `retry-after`, which is seconds or a date; a second if neither
    says."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            seconds = _seconds(headers.get("retry-after", ""))
    except ValueError:
        seconds = RETRY_AFTER_S
    return min(max(seconds, 0.05), RETRY_AFTER_S_MAX)


def _seconds(text: str) -> float:
    if not text:
        return RETRY_AFTER_S
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()


def _slug(code: str, message: str) -> str:
    too_long = any(each in code or each in message.lower() for each in TOO_LONG)
    return "context_length_exceeded" if too_long else "invalid_request"
