"""Clients that come and go, at every moment of a request, and leave nothing behind."""

import asyncio
import json
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shared.redis.client import CONNECTIONS_MAX
from tests.e2e.harness import Stack, eventually, standalone_stack

CYCLES = 10_000
AT_ONCE = 50
CLAIM_TTL_S = 30  # that of ownership.lua
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s resets the connection instead of closing it
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50, "stream": True}


async def cycle(port: int, rng: random.Random) -> None:
    body = json.dumps(ASK).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    how = rng.choice(["at once", "in the head", "in the body", "asked", "answered"])
    sent = {"at once": 0, "in the head": rng.randrange(1, len(head)), "in the body": len(request) - 5}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request[: sent.get(how, len(request))])
    await writer.drain()
    if how == "answered":
        assert await reader.read(1)
    if rng.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.close()


async def crowd(port: int, count: int, seed: int) -> None:
    rng, room = random.Random(seed), asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with room:
            await cycle(port, rng)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


def quiet(stack: Stack, measure: Callable[[], int], at_most: float, what: str) -> int:
    """Wait until no request is served and every task has ended."""
    eventually("no job is left", lambda: not stack.redis.exists("penstock:leases:scripted"), seconds=60)
    return int(eventually(what, lambda: (now := measure()) <= at_most and (now or 1), seconds=60))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ten_thousand_who_leave_cost_nothing_that_stays(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "scripted", scripted_step_ms=1, job_ttl_s=5, failed_ttl_s=5) as stack:
        processes = [psutil.Process(each.popen.pid) for each in (stack.api, *stack.workers) if each]

        def descriptors() -> int:
            """Count open descriptors without those to Redis, whose pools may grow to their limit at any time."""
            return sum(process.num_fds() - len(to_redis(process)) for process in processes)

        def to_redis(process: psutil.Process) -> list[object]:
            port = stack.server.port
            return [each for each in process.net_connections("tcp") if each.raddr and each.raddr.port == port]

        def megabytes() -> float:
            return float(sum(process.memory_info().rss for process in processes)) / 2**20

        def keys_of_jobs() -> int:
            """Count the keys without those that repeat the answer of a claim, which Redis drops after CLAIM_TTL_S."""
            return stack.redis.dbsize() - len(stack.redis.keys("penstock:claim:*"))

        asyncio.run(crowd(stack.port, CYCLES // 5, seed=1))
        keys, files = quiet(stack, keys_of_jobs, 60, "keys go"), quiet(stack, descriptors, 10**6, "")
        before = megabytes()
        asyncio.run(crowd(stack.port, CYCLES - CYCLES // 5, seed=2))

        quiet(stack, keys_of_jobs, keys + 5, "as few keys as before")
        claims = stack.redis.keys("penstock:claim:*")
        assert all(left == -2 or 0 <= left <= CLAIM_TTL_S for left in map(stack.redis.ttl, claims))
        quiet(stack, descriptors, files + 5, "as few descriptors as before")
        assert all(len(to_redis(process)) <= 2 * CONNECTIONS_MAX + 2 for process in processes)
        assert megabytes() < before * 1.1 + 5
        assert stack.post(ASK | {"stream": False, "max_tokens": 2}).status_code == 200
