"""Connections to Redis, and its errors in our words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from shared.errors import QueueUnavailable, SettingsError

CONNECTIONS_MAX = 32  # a burst of requests waits for one of these rather than open a thousand
POOL_WAIT_S = 5


def connect(url: str, *, retries: int = 2) -> Redis:
    """A client whose calls fail within about a second when Redis is away. Only repeatable scripts write, so a
    re-sent command is safe. `retries=0` is for blocking reads, which must not be sent twice."""
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), retries)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=POOL_WAIT_S,
            retry=retry,
            health_check_interval=15,
            socket_connect_timeout=2,
            socket_timeout=10,
        )
        return Redis.from_pool(pool)
    except ValueError as error:
        raise SettingsError(f"PENSTOCK_REDIS_URL: {error}") from error


@contextmanager
def translated() -> Iterator[None]:
    """Raise QueueUnavailable for whatever keeps Redis from doing its part."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis does not serve: {error}") from error


async def check(client: Redis, url: str) -> None:
    """Refuse to start on a Redis that is away, too old, or that may evict jobs. Raises SettingsError."""
    try:
        info = await client.info("server")
        memory = await client.info("memory")
    except (redis.exceptions.RedisError, OSError) as error:
        raise SettingsError(f"PENSTOCK_REDIS_URL: no Redis answers at {url} ({error})") from error
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < (6, 2):
        raise SettingsError(f"Redis {info['redis_version']} at {url} is too old: Penstock needs 6.2 or newer")
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise SettingsError(
            f"Redis at {url} has maxmemory-policy {policy}, which deletes jobs when memory is short: set noeviction"
        )


def memory_share(memory: Mapping[str, Any]) -> float:
    """The part that is used of what Redis may use, or of what its machine has, from `INFO memory`."""
    limit = memory.get("maxmemory") or memory.get("total_system_memory") or 0
    return memory["used_memory"] / limit if limit else 0.0


async def durability_warning(client: Redis) -> str | None:
    """One sentence when a crash of Redis would lose jobs."""
    persistence = await client.info("persistence")
    if persistence.get("aof_enabled"):
        return None
    return "Redis runs without an append-only file: jobs are lost if it dies (start it with --appendonly yes)"
