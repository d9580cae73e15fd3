"""A Redis whose machine died during a write must not apply half of the write at its next start."""

import os
from pathlib import Path

import pytest
import redis

from cli.embedded_redis import EmbeddedRedis
from shared.redis.client import connect
from shared.redis.health import rewrite_aof_once
from tests.conftest import SERVERS, binary_of
from tests.e2e.harness import eventually
from tests.ports import free_port

TWO_PUSHES = "redis.call('RPUSH', 'log', 'half', 'of it') redis.call('RPUSH', 'log', 'the rest')"


def cut_inside(folder: Path, word: bytes) -> None:
    """Cut the file in the middle of this word."""
    newest = max(folder.rglob("*.aof*"), key=lambda path: (path.suffix != ".manifest", path.stat().st_mtime))
    os.truncate(newest, newest.read_bytes().rindex(word) + 2)


@pytest.mark.parametrize("kind", SERVERS)
async def test_half_a_write_does_not_come_back(tmp_path: Path, kind: str) -> None:
    server = EmbeddedRedis(tmp_path, binary=binary_of(kind), port=free_port(), appendfsync="always")
    server.start()
    with redis.Redis.from_url(server.url) as writer:
        writer.rpush("log", "whole")
        writer.eval(TWO_PUSHES, 0)
        server.kill()
        cut_inside(tmp_path, b"the rest")
        server.start()
        client = connect(server.url)

        await rewrite_aof_once(client, await client.info())

        eventually("the file is written anew", lambda: not writer.info("persistence")["aof_rewrite_in_progress"])
        writer.rpush("log", "more")
        server.kill()
        server.start()
        assert writer.lrange("log", 0, -1) == [b"whole", b"more"]
    await client.aclose()
    server.stop()


async def test_it_is_done_once_for_each_start(client: redis.asyncio.Redis) -> None:
    info = await client.info()

    await rewrite_aof_once(client, info)
    first = await client.ttl(f"penstock:mended:{info['run_id']}")
    await rewrite_aof_once(client, info)

    assert 0 < await client.ttl(f"penstock:mended:{info['run_id']}") <= first
