"""A process that starts before its Redis waits for it, for a while."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from cli.embedded_redis import EmbeddedRedis, free_port
from shared.domain.errors import QueueUnavailable, SettingsError
from shared.redis.client import connect
from shared.redis.health import patiently, require_healthy
from shared.settings import load_settings


async def test_it_goes_on_when_redis_comes_and_says_what_it_waits_for(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, port=free_port())
    settings = load_settings(redis_url=server.url, redis_wait_s=30)
    client, said = connect(server.url), asyncio.Queue[str]()
    examined = partial(require_healthy, client, settings)
    waiting = asyncio.create_task(patiently(examined, settings, say=said.put_nowait))
    try:
        line = await said.get()
        server.start()

        assert await waiting == []
    finally:
        server.stop()
        await client.aclose()
    assert line.startswith(f"waiting for Redis, 30 s more: PENSTOCK_REDIS_URL: no Redis answers at {server.url}")


async def test_it_gives_up_when_the_time_is_over() -> None:
    settings = load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", redis_wait_s=0.2)
    client = connect(settings.redis_url)

    with pytest.raises(QueueUnavailable, match="no Redis answers"):
        await patiently(partial(require_healthy, client, settings), settings)
    await client.aclose()


async def test_a_wrong_password_is_not_waited_for(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, port=free_port())
    server.start()
    url = server.url.replace("redis://", "redis://:wrong-secret@")
    owner, client = connect(server.url), connect(url)
    try:
        await owner.config_set("requirepass", "right")
        settings = load_settings(redis_url=url, redis_wait_s=30)
        with pytest.raises(SettingsError, match=r"redis://:\*\*\*@127.0.0.1:\d+/0 refuses its password"):
            await patiently(partial(require_healthy, client, settings), settings)
    finally:
        server.stop()
        await client.aclose()
        await owner.aclose()
