"""Helpers that end asyncio tasks reliably."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

AGAIN_S = 0.05
Result = TypeVar("Result")


async def first_of(*work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of the first coroutine to end, or raise its error; if several end at once, the first argument
    among them counts. The others are cancelled and have ended by then."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        await end(tasks)


async def end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel the tasks until all have ended. One cancellation is not enough: before Python 3.12 `asyncio.wait_for`,
    which a library may use, loses a cancellation that arrives together with its result."""
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
