"""Only jobs without a reader are left."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator

import pytest

from api.serving.leaving import JOBS_MAX, Leaving
from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import ApiMetrics
from shared.process.tasks import end


class Queue:
    """Records the jobs that are left; each call fails a given number of times first."""

    def __init__(self) -> None:
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.failures: dict[str, int] = {}

    async def leave(self, job_id: str) -> None:
        if self.failures.get(job_id, 0):
            self.failures[job_id] -= 1
            raise QueueUnavailable("away")
        self.left.put_nowait(job_id)

    async def next(self) -> str:
        return await asyncio.wait_for(self.left.get(), 5)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
async def leaving(queue: Queue) -> AsyncIterator[Leaving]:
    made = Leaving(queue.leave, ApiMetrics())
    running = asyncio.create_task(made.run())
    yield made
    await end([running])


async def test_each_job_is_left_after_its_own_grace(queue: Queue, leaving: Leaving) -> None:
    for job_id, grace_s in (("late", 0.2), ("never", math.inf), ("soon", 0.0), ("next", 0.1)):
        leaving.add(job_id, grace_s=grace_s)

    assert [await queue.next() for _ in range(3)] == ["soon", "next", "late"]
    assert queue.left.empty()


async def test_a_job_that_is_read_again_is_not_left(queue: Queue, leaving: Leaving) -> None:
    leaving.add("back", grace_s=0.05)
    leaving.add("gone", grace_s=0.1)

    leaving.remove("back")

    assert await queue.next() == "gone"
    assert queue.left.empty()


async def test_a_job_whose_redis_is_away_is_left_when_it_is_back(queue: Queue, leaving: Leaving) -> None:
    queue.failures = {"away": 1}
    leaving.add("away", grace_s=0)
    leaving.add("here", grace_s=0)

    assert [await queue.next(), await queue.next()] == ["here", "away"]


async def test_closing_leaves_what_is_due_and_nothing_else(queue: Queue) -> None:
    leaving = Leaving(queue.leave, ApiMetrics())
    leaving.add("due", grace_s=0)
    leaving.add("later", grace_s=60)

    await leaving.close()

    assert queue.left.get_nowait() == "due"
    assert queue.left.empty()


async def test_closing_does_not_wait_for_ever(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    leaving = Leaving(queue.leave, ApiMetrics())
    queue.failures = {"away": 1000}
    leaving.add("away", grace_s=0)

    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(leaving.close(), 5)

    assert "not all cancelled" in caplog.text


async def test_jobs_that_wait_are_bounded(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    leaving = Leaving(queue.leave, ApiMetrics())

    with caplog.at_level(logging.WARNING):
        for at in range(JOBS_MAX + 1):
            leaving.add(str(at), grace_s=0)
        leaving.remove("0")
        leaving.add("one more", grace_s=0)

    assert caplog.text.count("is not cancelled") == 1
