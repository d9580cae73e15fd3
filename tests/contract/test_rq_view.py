"""RQ's tools can read a worker's record."""

import ipaddress
import socket

import pytest
from redis.asyncio import Redis

from shared.redis import keys
from shared.rq_view import register_worker, unregister_worker


async def test_a_heartbeat_asks_no_name_server(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(socket, "gethostbyname", asked.append)

    await register_worker(client, "w", ["m"], born="2026-11-24T00:00:00Z", ttl_s=10)

    address = await client.hget(keys.worker("w"), "ip_address")
    assert address
    assert ipaddress.ip_address(address.decode() if isinstance(address, bytes) else address)
    assert asked == []
    await unregister_worker(client, "w", ["m"])
    assert await client.keys("rq:worker*") == []
