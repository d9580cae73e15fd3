"""Connections to a Redis that many want at once."""

import asyncio

import pytest
from redis.asyncio import Redis

from shared.domain.errors import QueueUnavailable
from shared.redis import client as redis_client
from shared.redis.client import connect, translated
from tests.conftest import ServerOf

TASKS = 4 * redis_client.CONNECTIONS_MAX


async def _wait_in_vain(client: Redis) -> None:
    await client.blpop(["nothing"], timeout=30)


async def test_who_came_first_gets_the_next_connection(server_of: ServerOf) -> None:
    client = connect(server_of("embedded").url)
    done = [0] * TASKS
    apart = []

    async def asks(number: int) -> None:
        for _ in range(20):
            await client.ping()
            done[number] += 1
            apart.append(max(done) - min(done))

    await asyncio.gather(*map(asks, range(TASKS)))

    assert max(apart) <= 2
    await client.aclose()


async def test_connections_come_back_from_calls_that_were_cancelled(server_of: ServerOf) -> None:
    client = connect(server_of("embedded").url)
    for _ in range(3):
        waiting = [asyncio.ensure_future(_wait_in_vain(client)) for _ in range(TASKS)]
        await asyncio.wait(waiting, timeout=0.05)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    assert await asyncio.wait_for(asyncio.gather(*[client.ping() for _ in range(TASKS)]), 10) == [True] * TASKS
    await client.aclose()


async def test_a_call_that_gets_no_connection_in_time_is_told(
    server_of: ServerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(redis_client, "POOL_WAIT_S", 0.05)
    client = connect(server_of("embedded").url)
    holding = asyncio.ensure_future(_wait_in_vain(client))
    await asyncio.wait([holding], timeout=0.05)

    with pytest.raises(QueueUnavailable, match="no connection was free"), translated():
        await client.ping()
    holding.cancel()
    await asyncio.wait([holding])
    await client.aclose()
