"""Connections to Redis, and its errors in our words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff

from shared.errors import QueueUnavailable, SettingsError

CONNECTIONS_MAX = 32  # a burst of requests waits for one of these rather than open a thousand
POOL_WAIT_S = 5
SENTINEL = "redis+sentinel://"
SENTINEL_PORT = 26379


def connect(url: str, *, retries: int = 2) -> Redis:
    """A client whose calls fail within about a second when Redis is away. Only repeatable scripts write, so a
    re-sent command is safe. `retries=0` is for blocking reads, which must not be sent twice.

    `redis+sentinel://[user:password@]host:26379,host:26379/service/db` asks those Sentinels for the primary, at every
    new connection. Raises SettingsError for a URL that cannot be read.
    """
    options: dict[str, Any] = {
        "max_connections": CONNECTIONS_MAX,
        "timeout": POOL_WAIT_S,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), retries),
        "health_check_interval": 15,
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
    }
    try:
        if url.startswith(SENTINEL):
            return _by_sentinel(url, options)
        return Redis.from_pool(BlockingConnectionPool.from_url(url, **options))
    except ValueError as error:
        raise SettingsError(f"PENSTOCK_REDIS_URL: {error}") from error


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever is the primary now; a burst waits for one of them."""


def _by_sentinel(url: str, options: dict[str, Any]) -> Redis:
    address, _, place = url.removeprefix(SENTINEL).partition("/")
    login, _, hosts = address.rpartition("@")
    service, _, db = place.partition("/")
    if not service or not hosts:
        raise ValueError(f"{SENTINEL}host:port,host:port/service/db is expected, not {url}")
    user, _, password = login.partition(":")
    addresses = []
    for host in hosts.split(","):
        name, _, port = host.partition(":")
        addresses.append((name, int(port or SENTINEL_PORT)))
    manager: Any = Sentinel(addresses, sentinel_kwargs={"socket_connect_timeout": 1, "socket_timeout": 1})  # type: ignore[no-untyped-call]
    options |= {"db": int(db or 0), "check_connection": True}
    if login:
        options |= {"username": unquote(user) or None, "password": unquote(password)}
    primary: Redis = manager.master_for(service, connection_pool_class=_PrimaryPool, **options)
    return primary


@contextmanager
def translated() -> Iterator[None]:
    """Raise QueueUnavailable for whatever keeps Redis from doing its part."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis does not serve: {error}") from error


def memory_share(memory: Mapping[str, Any]) -> float:
    """The part that is used of what Redis may use, or of what its machine has, from `INFO memory`."""
    limit = memory.get("maxmemory") or memory.get("total_system_memory") or 0
    return memory["used_memory"] / limit if limit else 0.0
