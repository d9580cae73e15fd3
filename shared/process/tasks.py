"""Ending tasks for certain."""

import asyncio
from collections.abc import Collection
from typing import Any

AGAIN_S = 0.05


async def end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel the tasks until all have ended. Once is not enough: before Python 3.12 `asyncio.wait_for`, through which
    redis-py sends, loses a cancellation that arrives together with its result."""
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
