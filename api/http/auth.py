"""Authentication: the key that a request carries is looked up once, before the body is read."""

import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import Problem, problem_of
from shared.catalog.api_keys import ApiKey, ApiKeyStore
from shared.domain.errors import Forbidden, LimitReached, QueueUnavailable
from shared.queue.protocols import QueueProducer, RateLimits, RateLimitsLeft
from shared.settings import Settings

ANONYMOUS = "anonymous"
KEY_HEADERS = (b"authorization", b"x-api-key")
GUARDED = ("/v1/", "/api/v1/", "/dashboard/", "/running")
KNOWN_FOR_S = 2.0
KNOWN_MAX = 10_000
KIND = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}
LIMIT_HEADERS = [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in KIND]


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `tenant` owns its jobs; `key` is None if the request needs none."""

    tenant: str
    key: ApiKey | None = None


class Authenticator:
    """Looks up callers by key, each key at most every two seconds. If `required`, no request passes without a key.
    Otherwise an unknown key only names a tenant: OpenAI clients always send some key."""

    def __init__(self, api_keys: ApiKeyStore, *, queue: QueueProducer, required: bool) -> None:
        self._api_keys = api_keys
        self._queue = queue
        self._required = required
        self._known: OrderedDict[bytes, tuple[float, ApiKey | None]] = OrderedDict()
        self._closed: OrderedDict[str, float] = OrderedDict()

    async def caller(self, secret: str) -> Caller | None:
        """Return the caller with this key, None if it is refused. Raises QueueUnavailable."""
        key = await self._look_up(secret) if secret else None
        if key:
            return Caller(key.id, key)
        if self._required:
            return None
        return Caller(f"key-{hashlib.sha256(secret.encode()).hexdigest()[:12]}" if secret else ANONYMOUS)

    def rate_limits(self, caller: Caller, *, paced: bool = True) -> RateLimits | None:
        """Return the limits that the queue enforces on the caller's jobs: all, or if not `paced` only the month's."""
        if (key := caller.key) is None:
            return None
        if not paced:
            return RateLimits(month_tokens=key.tokens_per_month, month=self._api_keys.month())
        return RateLimits(
            requests=key.requests_per_minute,
            tokens=key.tokens_per_minute,
            jobs=key.concurrent_jobs,
            month_tokens=key.tokens_per_month,
            month=self._api_keys.month(),
        )

    async def charge(self, caller: Caller | None) -> None:
        """Count a request that was refused for its own fault. Once the caller's requests of this minute are used up,
        no body of its is read."""
        limits = self.rate_limits(caller) if caller else None
        if not caller or not limits or not limits.requests:
            return
        with suppress(QueueUnavailable):
            self._close(caller.tenant, wait_s=await self._queue.charge(caller.tenant, limits))

    def _close(self, tenant: str, *, wait_s: float) -> None:
        if wait_s > 0:
            self._closed[tenant] = time.monotonic() + wait_s
            self._closed.move_to_end(tenant)
            if len(self._closed) > KNOWN_MAX:
                self._closed.popitem(last=False)

    def require_open(self, caller: Caller) -> None:
        """Raise LimitReached before a body is read that would be refused."""
        left_s = self._closed.get(caller.tenant, 0.0) - time.monotonic()
        if left_s > 0 and caller.key:
            message = f"The key's limit of {caller.key.requests_per_minute} requests a minute is reached."
            raise LimitReached(message, limit="limit_requests", retry_after_s=math.ceil(left_s))

    async def _look_up(self, secret: str) -> ApiKey | None:
        digest, now = hashlib.sha256(secret.encode()).digest(), time.monotonic()
        until, key = self._known.get(digest, (0.0, None))
        if until < now:
            key = await self._api_keys.authenticate(secret)
            self._known[digest] = now + KNOWN_FOR_S, key
            self._known.move_to_end(digest)
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return key


class Authentication:
    """Guards every path under /v1, even those without a route. It is plain ASGI, since streams pass through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        secret = _secret(scope)
        try:
            caller = await scope["app"].state.services.authenticator.caller(secret)
        except QueueUnavailable as error:
            await problem_of(error).response(scope)(scope, receive, send)
            return
        if caller is None:
            await _refused(secret).response(scope)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


def may_use(caller: Caller, model: str) -> bool:
    return caller.key is None or not caller.key.models or model in caller.key.models


def require_use(caller: Caller, model: str) -> None:
    """Raise Forbidden if the caller's key may not use the model."""
    if not may_use(caller, model):
        raise Forbidden(f"This key may not use the model '{model}'.", param="model")


def keys_required(settings: Settings) -> bool:
    return settings.keys == "required" or (settings.keys == "auto" and not is_loopback(settings.host))


def limit_headers(key: ApiKey | None, left: RateLimitsLeft | None) -> dict[str, str]:
    """Return OpenAI's `x-ratelimit-*` headers for the limits that the key has."""
    headers = {}
    for kind, limit in KIND.items():
        if key and left and (most := getattr(key, limit)):
            headers[f"x-ratelimit-limit-{kind}"] = str(most)
            headers[f"x-ratelimit-remaining-{kind}"] = str(getattr(left, kind))
            headers[f"x-ratelimit-reset-{kind}"] = f"{getattr(left, kind + '_reset_s'):.3f}s"
    return headers


def _secret(scope: Scope) -> str:
    """Return the key as OpenAI's clients send it, or else as Anthropic's do."""
    headers: dict[bytes, str] = {
        name: value.decode("latin-1").strip() for name, value in scope["headers"] if name in KEY_HEADERS
    }
    kind, _, secret = headers.get(b"authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", "")


def _refused(secret: str) -> Problem:
    missing = "No API key was sent: the header 'Authorization: Bearer KEY' or 'x-api-key: KEY' is expected."
    message = "Incorrect API key provided." if secret else missing
    return Problem(code="invalid_api_key", message=message, headers={"www-authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
