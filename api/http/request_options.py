"""The options of a request beside its body: its caller, its priority, its deadlines, and its grace after the client
leaves. They are headers, so that any OpenAI client can send them."""

import hashlib
import math
import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from api.http.auth import Caller, caller_of
from api.http.event_position import PATTERN
from shared.domain.durations import seconds_of
from shared.domain.errors import InvalidRequest, SettingsError
from shared.domain.job import Priority
from shared.queue.protocols import Idempotency
from shared.settings import Settings

PREFIX = "x-penstock-"
KEY_MAX = 255
SECONDS_MAX = 7 * 86400
MOMENTS = "a time like 2026-12-24T18:00:00Z, Unix seconds, or a duration like 30m"
FOREVER = "forever"
POSITION = {"pattern": f"^{PATTERN}$"}
StartingAfter = Annotated[
    str | None,
    Query(description="The `id` of the last frame that came: what follows it is sent.", json_schema_extra=POSITION),
]
LastEventId = Annotated[
    str | None,
    Header(description="The same, as browsers send it; `starting_after` comes first.", json_schema_extra=POSITION),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """The options of one request. None is the default of the job's class. `not_before_s` and `due_s` are Unix times, of
    the headers not-before and deadline. With an infinite `grace_s` leaving does not cancel. `began` is when the request
    came, by the monotonic clock."""

    caller: Caller
    priority: Priority | None = None
    queue_deadline_s: float | None = None
    not_before_s: float | None = None
    due_s: float | None = None
    run_deadline_s: float | None = None
    grace_s: float | None = None
    idempotency: Idempotency | None = None
    event_ids: bool = False
    paced: bool = True  # whether the key's limits per minute and at a time apply
    began: float = field(default_factory=time.monotonic)


async def request_options_of(request: Request) -> RequestOptions:
    """Read the options from the headers. Raises InvalidRequest, which names the header."""
    caller = caller_of(request)
    now_s = time.time()
    not_before_s, due_s = _moment(request, "not-before", now_s), _moment(request, "deadline", now_s)
    if due_s is not None and due_s <= max(now_s, not_before_s or 0):
        raise _invalid("deadline", f"a time after now and after {PREFIX}not-before is expected")
    return RequestOptions(
        caller=caller,
        priority=_priority(request),
        queue_deadline_s=_seconds(request, "queue-deadline-s", least=0.001),
        not_before_s=not_before_s,
        due_s=due_s,
        run_deadline_s=_seconds(request, "run-deadline-s", least=0.001),
        grace_s=math.inf if _header(request, "grace-s") == FOREVER else _seconds(request, "grace-s", least=0),
        idempotency=await _idempotency(request, caller.tenant),
        event_ids=_flag(request, "event-ids"),
    )


RequestOptionsDep = Annotated[RequestOptions, Depends(request_options_of)]


def weights(settings: Settings) -> dict[str, float]:
    """Return the weights of the tenants whose weight is not 1. Raises SettingsError."""
    found = {}
    for part in filter(None, re.split(r"[,\s]+", settings.tenant_weights)):
        name, _, weight = part.partition("=")
        if not re.fullmatch(r"\d+(\.\d+)?", weight) or not float(weight):
            raise SettingsError(f"PENSTOCK_TENANT_WEIGHTS: {part!r} is not TENANT=WEIGHT, with a weight above 0")
        found[name] = float(weight)
    return found


def _priority(request: Request) -> Priority | None:
    value = _header(request, "priority")
    if value is None:
        return None
    if value not in list(Priority):
        raise _invalid("priority", "interactive, standard or batch is expected")
    return Priority(value)


def _seconds(request: Request, name: str, *, least: float) -> float | None:
    value = _header(request, name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= SECONDS_MAX:
        raise _invalid(name, f"a number of seconds from {least:g} to {SECONDS_MAX} is expected")
    return seconds


def _moment(request: Request, name: str, now_s: float) -> float | None:
    """Return the Unix time of a header that holds one, a time by RFC 3339, or a duration from now on."""
    value = _header(request, name)
    if value is None:
        return None
    try:
        moment = _moment_of(value, now_s)
    except ValueError:
        moment = math.inf
    if not moment <= now_s + SECONDS_MAX:
        raise _invalid(name, f"{MOMENTS}, within the next 7 days, is expected")
    return moment


def _moment_of(value: str, now_s: float) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    if value[:4].isdigit() and value[4:5] == "-":
        found = datetime.fromisoformat(value.upper())
        if found.tzinfo is None:
            raise ValueError("a time without a zone may be any")
        return found.timestamp()
    return now_s + seconds_of(value)


def _flag(request: Request, name: str) -> bool:
    value = _header(request, name)
    if value not in (None, "true", "false"):
        raise _invalid(name, "true or false is expected")
    return value == "true"


async def _idempotency(request: Request, tenant: str) -> Idempotency | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= KEY_MAX:
        raise InvalidRequest(f"'Idempotency-Key' must have 1 to {KEY_MAX} characters.", param="Idempotency-Key")
    body = request.url.path.encode() + b"\n" + await request.body()
    return Idempotency(
        key=f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}", fingerprint=hashlib.sha256(body).hexdigest()
    )


def _header(request: Request, name: str) -> str | None:
    value = request.headers.get(PREFIX + name)
    return None if value is None else value.strip().lower()


def _invalid(name: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{PREFIX}{name}': {expected}.", param=PREFIX + name)
