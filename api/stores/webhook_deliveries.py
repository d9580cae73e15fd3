"""Webhook deliveries in Redis. A delivery is due at a time, leased for an attempt, and then removed or put off. Its
record stays for two days, so that nothing is sent twice."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis

from api.stores.json_store import decode, encode
from shared.redis import keys
from shared.redis.client import Command, translated

PAUSES_S = (5, 30, 120, 600, 3600, 3 * 3600, 8 * 3600)  # after each failed attempt
LIFETIME_S = 2 * 86400  # of a delivery's record, whatever its result
LEASE_S = 60
# Writes a delivery and its due time, both or neither. SET's options say whether it may or must exist already.
PUT = """
if not redis.call('SET', KEYS[1], ARGV[1], unpack(ARGV, 4)) then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
return 1
"""
# Returns due deliveries, which are due again later should this process die. Those whose record has expired are dropped.
CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
local found = {}
for _, id in ipairs(due) do
  local data = redis.call('GET', ARGV[4] .. id)
  if data then
    redis.call('ZADD', KEYS[1], ARGV[2], id)
    found[#found + 1] = data
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return found
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    id: str
    tenant: str
    endpoint: str
    event: str
    payload: str
    attempts: int = 0


class WebhookDeliveryStore:
    def __init__(self, client: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = client
        self._clock = clock
        self._put = client.register_script(PUT)
        self._claim = client.register_script(CLAIM)

    async def add(self, delivery: WebhookDelivery) -> None:
        """Add a delivery, unless it was added before."""
        await self._write(delivery, self._clock(), "NX", "EX", LIFETIME_S)

    def addition(self, delivery: WebhookDelivery) -> list[Command]:
        """Return the commands of `add`, for a transaction that happens only once."""
        return [
            ("SET", keys.delivery(delivery.id), encode(delivery), "EX", LIFETIME_S),
            ("ZADD", keys.DELIVERIES, self._clock(), delivery.id),
        ]

    async def claim(self, limit: int) -> list[WebhookDelivery]:
        """Lease the deliveries that are due now for `LEASE_S` seconds."""
        now = self._clock()
        with translated():
            due: Any = await self._claim(keys=[keys.DELIVERIES], args=[now, now + LEASE_S, limit, keys.delivery("")])
        return [delivery for data in due if (delivery := decode(WebhookDelivery, data))]

    async def retry_later(self, delivery: WebhookDelivery) -> None:
        """Schedule the next attempt after a failed one, or remove the delivery after the last."""
        if delivery.attempts >= len(PAUSES_S):
            await self.remove(delivery)
            return
        due_s = self._clock() + PAUSES_S[delivery.attempts]
        await self._write(replace(delivery, attempts=delivery.attempts + 1), due_s, "XX", "KEEPTTL")

    async def put_off(self, deliveries: Sequence[WebhookDelivery], *, seconds: float) -> None:
        """Put deliveries off that were not attempted."""
        if not deliveries:
            return
        due_s = self._clock() + seconds
        with translated():
            await self._redis.zadd(keys.DELIVERIES, {each.id: due_s for each in deliveries}, xx=True)

    async def remove(self, delivery: WebhookDelivery) -> None:
        """Remove a delivery that has succeeded or is given up."""
        with translated():
            await self._redis.zrem(keys.DELIVERIES, delivery.id)

    async def _write(self, delivery: WebhookDelivery, due_s: float, *options: str | int) -> None:
        names = [keys.delivery(delivery.id), keys.DELIVERIES]
        with translated():
            await self._put(keys=names, args=[encode(delivery), due_s, delivery.id, *options])


def shared_out(
    due: Iterable[WebhookDelivery], *, running: Mapping[str, int], at_once: int, each_at_once: int
) -> tuple[list[WebhookDelivery], list[WebhookDelivery]]:
    """Return the deliveries to attempt now and those that wait: at most `at_once` run, and `each_at_once` of one
    tenant."""
    now, wait, of_tenant = list[WebhookDelivery](), list[WebhookDelivery](), Counter(running)
    for delivery in due:
        if of_tenant.total() < at_once and of_tenant[delivery.tenant] < each_at_once:
            of_tenant[delivery.tenant] += 1
            now.append(delivery)
        else:
            wait.append(delivery)
    return now, wait
