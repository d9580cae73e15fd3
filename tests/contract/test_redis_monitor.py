"""An API notices changes of its Redis while it runs."""

import asyncio

import pytest
from redis.asyncio import Redis

from api.serving.redis_monitor import RedisMonitor
from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import ApiMetrics
from shared.settings import load_settings
from tests.e2e.harness import eventually


def refusal(pressure: RedisMonitor, client: Redis) -> str:
    try:
        pressure.check(client)
    except QueueUnavailable as error:
        return str(error)
    return ""


async def test_a_redis_that_would_lose_jobs_gets_none_until_it_is_mended(client: Redis) -> None:
    metrics = ApiMetrics()
    pressure = RedisMonitor([client], load_settings(), metrics)
    await client.config_set("maxmemory-policy", "allkeys-lru")
    looking = asyncio.create_task(pressure.run())

    await asyncio.to_thread(eventually, "refused", lambda: "noeviction" in refusal(pressure, client))
    assert metrics.registry.get_sample_value("penstock_redis_up", {"redis": "0"}) == 0
    await client.config_set("maxmemory-policy", "noeviction")
    await asyncio.to_thread(eventually, "accepted", lambda: not refusal(pressure, client))

    assert metrics.registry.get_sample_value("penstock_redis_up", {"redis": "0"}) == 1
    assert 0 < (metrics.registry.get_sample_value("penstock_redis_memory_ratio", {"redis": "0"}) or 0) < 1

    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
