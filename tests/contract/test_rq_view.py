"""RQ's tools can read a worker's record, and whoever reads it finds the worker's models."""

import ipaddress
import socket

import pytest
from redis.asyncio import Redis

from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import QueueUnavailable
from shared.domain.job import ModelInfo
from shared.redis import keys
from shared.rq_view import register_worker, unregister_worker
from workers.main import _Presence


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


async def test_a_worker_is_listed_only_when_its_models_are(client: Redis) -> None:
    model = ModelInfo(name="m", engine="scripted", context_length=9, created_s=0)
    presence = _Presence(client, [model], url="http://127.0.0.1:1")
    await client.set(keys.MODELS, "the write of a model fails")

    with pytest.raises(QueueUnavailable):
        await presence.announce()

    assert await client.keys("rq:worker*") == []
    await client.delete(keys.MODELS)
    await presence.announce()
    assert [info.workers for info in await ModelRegistry(client).models()] == [1]
