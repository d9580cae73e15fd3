"""Webhook endpoints and the sending of deliveries: signed per Standard Webhooks, retried with growing pauses, and never
sent to private addresses.

A delivery is stored in Redis before its first attempt, so that no death of an API process loses it. A receiver may get
it twice, with the same id.
"""

import asyncio
import base64
import hmac
import json
import math
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis

from api.http.public_addresses import is_public
from api.http.resolver import Resolver, ResolverBusy
from api.stores.json_store import decode, encode
from api.stores.webhook_deliveries import WebhookDelivery, WebhookDeliveryStore
from shared.domain.errors import InvalidRequest, LimitReached, NotFound
from shared.redis import keys
from shared.redis.client import Command, translated

EVENTS = (
    *(f"response.{end}" for end in ("completed", "failed", "cancelled", "incomplete")),
    *(f"batch.{end}" for end in ("completed", "failed", "expired", "cancelled")),
)
ROTATION_S = 86400
TIMEOUT_S = 10.0  # for one POST, up to the head of the answer
LOOKUP_S = 5.0
LOOKUPS_AT_ONCE = 32
ADDED_AT_ONCE = 8  # look-ups for new endpoints, in threads of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint, which receives `events`. `old_secret` signs as well until `old_until_s`, so that receivers can
    change theirs."""

    id: str
    tenant: str
    url: str
    events: list[str]
    secret: str
    created_s: int
    old_secret: str = ""
    old_until_s: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "webhook_endpoint",
            "url": self.url,
            "events": self.events,
            "created_at": self.created_s,
        }

    def signature(self, event_id: str, at_s: int, payload: str) -> str:
        """Return one signature per secret, separated by spaces."""
        known = [self.secret, *([self.old_secret] if at_s < self.old_until_s else [])]
        return " ".join(f"v1,{_signed(secret, f'{event_id}.{at_s}.{payload}')}" for secret in known)


@dataclass(frozen=True, slots=True)
class Result:
    """A receiver's answer, or the reason why there is none. `attempted` is False if this process had no room for an
    attempt."""

    status: int | None = None
    error: str | None = None
    attempted: bool = True

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Webhooks:
    """Stores endpoints and sends deliveries. With `private`, receivers may have private addresses and need no TLS.
    `timeout_s` bounds one complete POST, since a receiver may send single bytes for ever. `lookup_s` bounds a host
    look-up, and before it the wait for a thread."""

    def __init__(
        self,
        client: Redis,
        *,
        private: bool,
        timeout_s: float = TIMEOUT_S,
        lookup_s: float = LOOKUP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue = WebhookDeliveryStore(client, clock=clock)
        self._redis = client
        self._private = private
        self._timeout_s = timeout_s
        self._clock = clock
        self._tls = httpx.create_ssl_context(trust_env=False)
        # Separate threads: a tenant that adds endpoints with unanswered names must hold up no delivery.
        self._adding = Resolver(ADDED_AT_ONCE, wait_s=lookup_s, timeout_s=lookup_s)
        self._sending = Resolver(LOOKUPS_AT_ONCE, wait_s=lookup_s, timeout_s=lookup_s)

    async def add(self, tenant: str, url: str, events: Sequence[str]) -> Endpoint:
        """Add an endpoint. Raises InvalidRequest for a URL that is not allowed, LimitReached when too many hosts are
        being looked up."""
        try:
            await self._reachable(url, tenant, self._adding)
        except ResolverBusy as error:
            message = "Too many hosts of webhooks are being looked up; add this one again after a while, one at a time."
            raise LimitReached(message, limit="limit_lookups", retry_after_s=math.ceil(LOOKUP_S)) from error
        made = Endpoint(
            id=f"we_{secrets.token_hex(12)}",
            tenant=tenant,
            url=url,
            events=list(events) or list(EVENTS),
            secret=_secret(),
            created_s=int(self._clock()),
        )
        await self._save(made)
        return made

    async def rotate(self, endpoint: Endpoint) -> Endpoint:
        """Replace the secret; the old one signs as well for a day."""
        until = int(self._clock()) + ROTATION_S
        made = replace(endpoint, secret=_secret(), old_secret=endpoint.secret, old_until_s=until)
        await self._save(made)
        return made

    async def all(self, tenant: str) -> list[Endpoint]:
        with translated():
            found: Any = await self._redis.hgetall(keys.webhooks_of(tenant))
        known = [endpoint for data in found.values() if (endpoint := decode(Endpoint, data))]
        return sorted(known, key=lambda endpoint: endpoint.created_s)

    async def get(self, endpoint_id: str, *, tenant: str) -> Endpoint:
        """Return the endpoint. Raises NotFound."""
        with translated():
            found: Any = await self._redis.hget(keys.webhooks_of(tenant), endpoint_id)
        if found is None or (endpoint := decode(Endpoint, found)) is None:
            raise NotFound(f"There is no webhook endpoint {endpoint_id}.", param="endpoint_id")
        return endpoint

    async def remove(self, endpoint: Endpoint) -> None:
        with translated():
            await self._redis.hdel(keys.webhooks_of(endpoint.tenant), endpoint.id)

    async def notify(self, tenant: str, event: str, about_id: str) -> None:
        """Add a delivery for each endpoint of the tenant that receives the event; a repeat adds none."""
        for delivery in await self._made(tenant, event, about_id):
            await self.queue.add(delivery)

    async def deliveries(self, tenant: str, event: str, about_id: str) -> Sequence[Command]:
        """Return the commands of `notify`, for a transaction that happens only once."""
        made = await self._made(tenant, event, about_id)
        return [command for delivery in made for command in self.queue.addition(delivery)]

    async def send(self, endpoint: Endpoint, event_id: str, payload: str) -> Result:
        """Send one POST. Redirects are not followed, since they could lead to a private address."""
        at_s = int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": "Penstock",
            "webhook-id": event_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": endpoint.signature(event_id, at_s, payload),
        }
        try:
            address = await self._reachable(endpoint.url, endpoint.tenant, self._sending)
            async with asyncio.timeout(self._timeout_s):
                return await _post(endpoint.url, address, headers, payload, self._tls)
        except ResolverBusy:
            return Result(error="look-ups of hosts are busy just now; try again", attempted=False)
        except TimeoutError:
            return Result(error=f"no answer within {self._timeout_s:g} seconds")
        except (InvalidRequest, httpx.HTTPError, OSError) as error:
            return Result(error=str(error) or type(error).__name__)

    async def _reachable(self, url: str, tenant: str, resolver: Resolver) -> str:
        """Return the address to connect to. It is looked up only here, so that the name cannot lead to another address
        later. Raises InvalidRequest and ResolverBusy."""
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        except ValueError as error:
            raise InvalidRequest(f"'url' cannot be read: {error}.", param="url") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise InvalidRequest("'url' must be http(s)://host/path, without a user name.", param="url")
        if parts.scheme == "http" and not self._private:
            raise InvalidRequest("'url' must be https.", param="url")
        try:
            addresses = await resolver.look_up(parts.hostname, port, tenant=tenant)
        except TimeoutError as error:
            message = f"'url' names a host whose name server does not answer in time: {parts.hostname}."
            raise InvalidRequest(message, param="url") from error
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(f"'url' names a host that is not found: {parts.hostname}.", param="url") from error
        if not self._private and not all(is_public(address) for address in addresses):
            raise InvalidRequest("'url' must not lead to a private address.", param="url")
        return addresses[0]

    async def _made(self, tenant: str, event: str, about_id: str) -> Sequence[WebhookDelivery]:
        """Create a delivery for each endpoint that receives the event."""
        event_id = f"evt_{about_id}"
        payload = payload_of(event_id, event, about_id, int(self._clock()))
        return [
            WebhookDelivery(
                id=f"{about_id}-{endpoint.id}", tenant=tenant, endpoint=endpoint.id, event=event_id, payload=payload
            )
            for endpoint in await self.all(tenant)
            if event in endpoint.events
        ]

    async def _save(self, endpoint: Endpoint) -> None:
        with translated():
            await self._redis.hset(keys.webhooks_of(endpoint.tenant), endpoint.id, encode(endpoint))


def payload_of(event_id: str, event: str, about_id: str, at_s: int) -> str:
    return json.dumps({"id": event_id, "object": "event", "created_at": at_s, "type": event, "data": {"id": about_id}})


async def _post(url: str, address: str, headers: dict[str, str], payload: str, tls: ssl.SSLContext) -> Result:
    """Send a POST and read only the head of the answer, which the HTTP library bounds."""
    parts = urlsplit(url)
    host = f"[{address}]" if ":" in address else address
    netloc = host if parts.port is None else f"{host}:{parts.port}"
    headers["host"] = parts.netloc
    async with httpx.AsyncClient(verify=tls, timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
        request = client.build_request(
            "POST",
            parts._replace(netloc=netloc).geturl(),
            content=payload,
            headers=headers,
            extensions={"sni_hostname": parts.hostname},
        )
        response = await client.send(request, stream=True)
        await response.aclose()
    return Result(status=response.status_code)


def _secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _signed(secret: str, text: str) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
