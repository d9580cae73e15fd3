"""The queue in memory, with a clock that a test moves."""

import pytest

from shared.queue.memory_queue import MemoryQueue
from tests.running_workers import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> MemoryQueue:
    return MemoryQueue(clock)
