"""Checks that a Redis can be trusted with jobs. A process runs them at its start, and `penstock doctor` prints them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import redis.exceptions
from redis.asyncio import Redis

from shared.domain.errors import QueueUnavailable, SettingsError
from shared.redis import keys
from shared.redis.client import masked, memory_share, translated
from shared.settings import Settings

log = logging.getLogger(__name__)
OLDEST = (6, 2)
WAITAOF_SINCE = (7, 2)
CONFIRM_MS = 2000
MENDED_S = 86400
ASK_AGAIN_S = 0.5
SAY_AGAIN_S = 10.0
Answer = TypeVar("Answer")


class Level(StrEnum):
    GOOD = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check. `text` is one sentence for a person, with the remedy if one is needed."""

    level: Level
    text: str


async def examine(client: Redis, settings: Settings) -> list[Finding]:
    """Check a Redis. Raises QueueUnavailable when none answers, SettingsError when it refuses the URL's password."""
    info = await _info(client, settings)
    return [*_server(info), *_memory(info, settings), *_persistence(info), *_durability(info, settings)]


async def require_healthy(client: Redis, settings: Settings) -> list[str]:
    """Refuse a Redis that loses jobs, else return the warnings about it. Raises SettingsError to refuse, and
    QueueUnavailable when none answers."""
    found = await examine(client, settings)
    for finding in found:
        if finding.level is Level.BAD:
            raise SettingsError(finding.text)
    return [finding.text for finding in found if finding.level is Level.WARNING]


async def patiently(
    ask: Callable[[], Awaitable[Answer]], settings: Settings, *, say: Callable[[str], None] = log.warning
) -> Answer:
    """Return what `ask` returns, and repeat it for `redis_wait_s` while it raises QueueUnavailable; then raise that.
    The wait is reported at once, and again from time to time."""
    began, said = time.monotonic(), float("-inf")
    while True:
        try:
            return await ask()
        except QueueUnavailable as error:
            waited = time.monotonic() - began
            if waited >= settings.redis_wait_s:
                raise
            if waited - said >= SAY_AGAIN_S:
                said = waited
                say(f"waiting for Redis, {settings.redis_wait_s - waited:.0f} s more: {error}")
        await asyncio.sleep(ASK_AGAIN_S)


async def durability_command(client: Redis, settings: Settings) -> tuple[Any, ...]:
    """Return the command to send after a job is written and before it is accepted, which answers how many disks or
    replicas hold the job; () for none. Raises QueueUnavailable."""
    if settings.durability == "durable":
        return ("WAIT", 1, CONFIRM_MS)
    if settings.durability == "safe" and (await _info(client, settings))["appendfsync"] != "always":
        return ("WAITAOF", 1, 0, CONFIRM_MS)
    return ()


async def rewrite_aof_once(client: Redis, info: dict[str, Any]) -> None:
    """Have Redis rewrite its append-only file, once for each of its starts. Raises QueueUnavailable.

    When its machine dies in the middle of writing a transaction, Redis (seen with 6.2 and 7.0) leaves the transaction's
    beginning in the file, does not apply it, and goes on writing: the next start applies that half before the rest. A
    job's log would then hold a token twice."""
    if not info.get("aof_enabled"):
        return
    with translated():
        if await client.set(keys.mended(info["run_id"]), 1, nx=True, ex=MENDED_S):
            try:
                await client.bgrewriteaof()
            except redis.exceptions.ResponseError as error:  # a rewrite is running, or a managed server forbids it
                log.info("redis does not rewrite its file", extra={"error": str(error)})


async def _info(client: Redis, settings: Settings) -> dict[str, Any]:
    try:
        async with client.pipeline(transaction=False) as pipe:
            pipe.info("everything")
            pipe.execute_command("CONFIG", "GET", "appendfsync")
            info, config = await pipe.execute(raise_on_error=False)
        if isinstance(info, Exception):
            raise info
    except redis.exceptions.AuthenticationError as error:
        raise SettingsError(
            f"PENSTOCK_REDIS_URL: {masked(settings.redis_url)} refuses its password ({error})"
        ) from error
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(
            f"PENSTOCK_REDIS_URL: no Redis answers at {masked(settings.redis_url)} ({error})"
        ) from error
    fsync = "unknown"  # managed servers forbid CONFIG
    if not isinstance(config, Exception) and config:
        fsync = (next(iter(config.values())) if isinstance(config, dict) else config[1]) or fsync
    found: dict[str, Any] = info | {"appendfsync": fsync.decode() if isinstance(fsync, bytes) else fsync}
    return found


def _server(info: dict[str, Any]) -> Iterator[Finding]:
    if _version(info) < OLDEST:
        yield Finding(Level.BAD, f"Redis {info['redis_version']} is too old: Penstock needs 6.2 or newer")
    else:
        yield Finding(Level.GOOD, _name(info))
    if info.get("role", "master") != "master":
        yield Finding(Level.BAD, "this Redis is a replica and takes no writes: use the primary's URL, or a Sentinel's")
    if info.get("cluster_enabled"):
        yield Finding(Level.BAD, "this is a Redis Cluster: a queue needs one primary (replicas and Sentinel are fine)")


def _memory(info: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            Level.BAD, f"Redis has maxmemory-policy {policy}, which deletes jobs when memory is short: set noeviction"
        )
    if not info.get("maxmemory"):
        yield Finding(
            Level.WARNING, "Redis has no maxmemory: set one below its machine's memory, which kills it otherwise"
        )
    share = memory_share(info)
    level = Level.BAD if share >= 1 else Level.WARNING if share >= settings.redis_memory_share else Level.GOOD
    todo = (
        "" if level is Level.GOOD else ": raise its maxmemory, or shorten PENSTOCK_JOB_TTL_S and PENSTOCK_FAILED_TTL_S"
    )
    used = f"Redis uses {share:.0%} of its memory; new jobs stop at {settings.redis_memory_share:.0%}"
    yield Finding(level, used + todo)


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    if not info.get("aof_enabled"):
        yield Finding(
            Level.WARNING,
            "Redis runs without an append-only file: jobs are lost if it dies (start it with --appendonly yes)",
        )
        return
    if info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(Level.BAD, "Redis cannot write its append-only file: make room on its disk")
    else:
        yield Finding(Level.GOOD, f"Redis writes an append-only file, synced {info['appendfsync']}")


def _durability(info: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    if settings.durability == "safe":
        known = info["appendfsync"] == "always" or _version(info) >= WAITAOF_SINCE
        if not info.get("aof_enabled") or not known:
            yield Finding(
                Level.BAD,
                "PENSTOCK_DURABILITY=safe needs an append-only file, and Redis 7.2 or newer or --appendfsync always",
            )
    if settings.durability == "durable" and not info.get("connected_slaves"):
        yield Finding(Level.WARNING, "PENSTOCK_DURABILITY=durable accepts nothing: connect a replica")
    yield Finding(Level.GOOD, f"durability profile {settings.durability}")


def _name(info: dict[str, Any]) -> str:
    compatible = f"Redis {info['redis_version']}"
    return f"Valkey {info['valkey_version']}, compatible with {compatible}" if "valkey_version" in info else compatible


def _version(info: dict[str, Any]) -> tuple[int, ...]:
    """Return the server's version. Valkey reports a compatible Redis version, but its features follow its own."""
    number = str(info.get("valkey_version") or info["redis_version"])
    return tuple(int(part) for part in number.split(".")[:2])
