"""Tasks end, even if a cancellation gets lost."""

import asyncio

import pytest

from shared.process.tasks import end, first_of


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


async def test_the_first_one_to_end_decides_and_the_others_have_ended() -> None:
    cancelled = asyncio.Event()

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
            return 0
        finally:
            cancelled.set()

    async def soon() -> int:
        return 1

    assert await first_of(endless(), soon()) == 1
    assert cancelled.is_set()


async def test_of_two_that_end_at_once_the_first_named_decides() -> None:
    async def at_once(result: int) -> int:
        return result

    async def fails() -> int:
        raise ValueError("failed")

    assert await first_of(at_once(1), at_once(2)) == 1
    with pytest.raises(ValueError, match="failed"):
        await first_of(fails(), at_once(2))
