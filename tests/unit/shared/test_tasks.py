"""Tasks end, even those that lose a cancellation."""

import asyncio

from shared.process.tasks import end


async def test_a_task_that_swallows_a_cancellation_still_ends() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)

    await asyncio.wait_for(end([task]), 5)

    assert task.cancelled()
    assert swallowed == 3


async def test_ending_what_has_ended_returns_at_once() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task

    await end([task])
    await end([])
