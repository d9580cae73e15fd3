"""Each queue with its event channel: in memory, and on every kind of Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from shared.queue.event_channel import RedisChannel
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect
from tests.conftest import SERVERS, ServerOf

LEASE_MS = 500
TEN = Bounds(jobs_max=10)


@dataclass
class Backend:
    queue: MemoryQueue | RedisQueue
    channel: MemoryQueue | RedisChannel
    let_leases_run_out: Callable[[], Awaitable[None]]
    stored: Callable[[str], Awaitable[bool]]  # True if there is a record of this key


@pytest.fixture(params=["memory", *SERVERS])
async def backend(request: pytest.FixtureRequest, server_of: ServerOf) -> AsyncIterator[Backend]:
    if request.param == "memory":
        now = [0.0]
        memory = MemoryQueue(lambda: now[0], lease_ms=LEASE_MS)

        async def jump() -> None:
            now[0] += LEASE_MS + 1

        async def kept(key: str) -> bool:
            return key in memory.stored

        yield Backend(memory, memory, jump, kept)
        return
    client = connect(server_of(request.param).url)
    await client.flushall()

    async def idle() -> None:
        await asyncio.sleep((LEASE_MS + 20) / 1000)  # the lease is counted by the server's own clock

    async def exists(key: str) -> bool:
        return bool(await client.exists(key))

    yield Backend(RedisQueue(client, lease_ms=LEASE_MS), RedisChannel(client), idle, exists)
    await client.aclose()
