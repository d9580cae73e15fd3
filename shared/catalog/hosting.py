"""The hosts of all machines write into Redis what they have, and are given their orders there."""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockNotOwnedError

from shared.domain.errors import NotFound, QueueUnavailable
from shared.domain.hosting import Host, HostedModel, HostedState, Order, OrderVerb, When
from shared.domain.neighbours import known_fields
from shared.redis import keys
from shared.redis.client import translated

log = logging.getLogger(__name__)
HOST_TTL_S = 10
ORDER_TTL_S = 600
ORDERS_MAX = 1000
KEEP_ALIVE_TTL_S = 7 * 86400
DONE = "done"
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError)
Record = TypeVar("Record", Host, HostedModel, Order)


class Hosting:
    """Raises QueueUnavailable in every method, if Redis is away."""

    def __init__(self, client: Redis, *, orders_max: int = ORDERS_MAX) -> None:
        self._redis = client
        self._orders_max = orders_max

    async def hosts(self) -> list[Host]:
        """Return the hosts that are alive."""
        with translated():
            ids = await self._ids()
            rows = await self._read([("get", keys.host(each)) for each in ids])
            if gone := [each for each, row in zip(ids, rows, strict=True) if row is None]:
                await self._redis.srem(keys.HOSTS, *gone)
        return _readable(Host, rows)

    async def all(self) -> dict[str, list[HostedModel]]:
        """Return every model that a host has, by name, with its record on each host that is alive."""
        with translated():
            rows = await self._read([("hvals", keys.hosted(each)) for each in await self._ids()])
        found: dict[str, list[HostedModel]] = {}
        for record in _readable(HostedModel, [each for row in rows for each in row]):
            found.setdefault(record.model, []).append(record)
        return found

    async def of(self, model: str) -> list[HostedModel]:
        """Return the model's record on each host that is alive and has it."""
        with translated():
            rows = await self._read([("hget", keys.hosted(each), model) for each in await self._ids()])
        return _readable(HostedModel, rows)

    async def place(self, host: str, order: Order) -> None:
        """Give an order to a host, and wake it. Raises QueueUnavailable if the host has too many orders already."""
        with translated():
            if int(await self._redis.llen(keys.orders(host))) >= self._orders_max:
                raise QueueUnavailable(f"the host {host} does not get through its orders")
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(keys.orders(host), _encoded(order))
                pipe.expire(keys.orders(host), ORDER_TTL_S)
                pipe.publish(keys.WANTED, order.model)
                await pipe.execute()

    async def outcome(self, order_id: str) -> str | None:
        """Return DONE, or why the order was not carried out; None while that is open."""
        with translated():
            found: Any = await self._redis.get(keys.order(order_id))
        return found.decode() if found else None

    async def set_keep_alive(self, model: str, seconds: float) -> None:
        """Note how long the model stays loaded after its next work, as its last request asked: 0 for not at all, less
        for ever."""
        with translated():
            await self._redis.set(keys.keep_alive(model), f"{seconds:g}", ex=KEEP_ALIVE_TTL_S)

    async def write(self, host: Host, models: Iterable[HostedModel], *, gone: Collection[str] = ()) -> bool:
        """Write down that the host is alive, with the models that have changed, and without those that are `gone`.
        Return False if Redis had forgotten its models: write all of them then."""
        fields: Any = {each.model: _encoded(each) for each in models}
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.exists(keys.hosted(host.id))
                pipe.sadd(keys.HOSTS, host.id)
                pipe.set(keys.host(host.id), _encoded(host), ex=HOST_TTL_S)
                if gone:
                    pipe.hdel(keys.hosted(host.id), *gone)
                if fields:
                    pipe.hset(keys.hosted(host.id), mapping=fields)
                pipe.expire(keys.hosted(host.id), HOST_TTL_S)
                answers = await pipe.execute()
        return bool(answers[0])

    async def leave(self, host: str, machine: str = "") -> None:
        """Forget a host, and its hold of the machine."""
        with translated():
            if machine:
                with suppress(LockNotOwnedError):
                    await self._lock(machine).do_release(host.encode())
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.srem(keys.HOSTS, host)
                pipe.delete(keys.host(host), keys.hosted(host), keys.orders(host))
                await pipe.execute()

    async def take_orders(self, host: str) -> list[Order]:
        """Return the orders that were placed since the last call. One that this release cannot read has failed."""
        with translated():
            rows: Any = await self._redis.lrange(keys.orders(host), 0, -1)
        orders = []
        for row in rows:
            try:
                orders.append(_decoded(Order, row))
            except UNREADABLE:
                await self._refuse(host, row)
        if rows:  # only now: an order that is taken twice is carried out twice, and one that is lost never is
            with translated():
                await self._redis.ltrim(keys.orders(host), len(rows), -1)
        return orders

    async def hold(self, machine: str, host: str) -> bool:
        """Hold the machine for this host from now on, or still: until it leaves, or is not heard of for HOST_TTL_S.
        Return False if another host holds it."""
        lock = self._lock(machine)
        with translated():
            if await lock.acquire(token=host):
                return True
            lock.local.token = host.encode()
            try:
                return bool(await lock.reacquire())
            except LockNotOwnedError:
                return False

    async def holder(self, machine: str) -> str:
        """Return the host that holds the machine, or ""."""
        with translated():
            found: Any = await self._redis.get(keys.machine(machine))
        return found.decode() if found else ""

    async def report(self, order_id: str, outcome: str = DONE) -> None:
        """Tell whoever waits for the order how it went."""
        with translated():
            await self._redis.set(keys.order(order_id), outcome, ex=ORDER_TTL_S)

    def _lock(self, machine: str) -> Lock:
        return Lock(self._redis, keys.machine(machine), timeout=HOST_TTL_S, blocking=False, thread_local=False)

    async def _refuse(self, host: str, row: bytes) -> None:
        """Tell that an order of another release failed, as far as it says which one it is."""
        log.error("an order cannot be read", extra={"host": host})
        with suppress(*UNREADABLE):
            order_id = str(json.loads(row)["id"])
            await self.report(order_id, "this host cannot read the order: it may be of another release")

    async def _ids(self) -> list[str]:
        members: Any = await self._redis.smembers(keys.HOSTS)
        return sorted(each.decode() for each in members)

    async def _read(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        if not commands:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = await pipe.execute()
        return answers


def best_of(records: Sequence[HostedModel]) -> HostedModel:
    """Return the record of a model that tells most about when a request for it will run. Raises NotFound if no host has
    the model."""
    if not records:
        raise NotFound("No host has this model.", code="model_not_found", param="model")
    return min(records, key=lambda each: (_NEAREST.index(each.state), each.host))


_NEAREST = (
    HostedState.READY,
    HostedState.ASLEEP,
    HostedState.LOADING,
    HostedState.DRAINING,
    HostedState.CONFIGURED,
    HostedState.FAILED,
)


def _encoded(record: Host | HostedModel | Order) -> str:
    return json.dumps(dataclasses.asdict(record), separators=(",", ":"))


def _decoded(kind: type[Record], data: bytes) -> Record:
    """A field that this release does not know is left out, so that two releases work side by side."""
    found = known_fields(kind, json.loads(data))
    return kind(**{name: _READ.get(name, _same)(value) for name, value in found.items()})


def _readable(kind: type[Record], rows: Iterable[bytes | None]) -> list[Record]:
    """Leave out what cannot be read: a later release may have states that this one does not know."""
    found = []
    for row in rows:
        with suppress(*UNREADABLE):
            if row:
                found.append(_decoded(kind, row))
    return found


def _same(value: Any) -> Any:
    return value


_READ: Mapping[str, Any] = {"state": HostedState, "verb": OrderVerb, "when": When, "devices": tuple}
