"""The names that stand for models, as hosts read them from their files: aliases, routes, and the default."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from redis.asyncio import Redis

from shared.domain.routing import Route, Routing
from shared.redis import keys
from shared.redis.client import translated


class RouteTable:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def read(self) -> Routing:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(keys.ROUTES)
                pipe.get(keys.DEFAULT_MODEL)
                routes, default = await pipe.execute()
        return Routing(
            routes={name.decode(): _decode(route) for name, route in routes.items()},
            default=(default or b"").decode(),
        )

    async def write(self, routes: Mapping[str, Route], default: str, *, before: Collection[str] = ()) -> None:
        """Write these names and leave those of other hosts. `before` has the names that this host wrote earlier; of
        them, those that are not in `routes` are removed. An empty `default` leaves the one that is there."""
        gone = sorted(set(before) - routes.keys())
        fields: Any = {name: _encode(route) for name, route in routes.items()}
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                if gone:
                    pipe.hdel(keys.ROUTES, *gone)
                if fields:
                    pipe.hset(keys.ROUTES, mapping=fields)
                if default:
                    pipe.set(keys.DEFAULT_MODEL, default)
                await pipe.execute()


def _encode(route: Route) -> str:
    spill_after_s = None if math.isinf(route.spill_after_s) else route.spill_after_s
    return json.dumps({"order": route.order, "spill_after_s": spill_after_s})


def _decode(data: bytes) -> Route:
    fields = json.loads(data)
    spill_after_s = fields.get("spill_after_s")
    return Route(order=tuple(fields["order"]), spill_after_s=math.inf if spill_after_s is None else spill_after_s)
