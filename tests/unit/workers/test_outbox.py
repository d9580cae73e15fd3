"""Events from the engine's thread reach the event loop merged, in a bounded outbox that closes."""

import asyncio
import threading
from collections.abc import Callable

from shared.queue.protocols import Delivery
from tests.factories import delta, make_job, started
from tests.unit.workers.test_generation import engine
from workers.runners.outbox import Outbox, Update
from workers.runs.generation import Generation


def run() -> Generation:
    return Generation(Delivery(job=make_job(), claim_token="e", attempt=1), engine())


async def test_steps_are_merged_to_one_update_for_each_turn() -> None:
    outbox = Outbox(asyncio.get_running_loop(), steps_max=9)
    one, two = run(), run()
    outbox.put_now(Update(one, [started()]))
    outbox.put([Update(one, [delta(1)]), Update(two, [delta(1)])])
    outbox.put([Update(one, [delta(2)])])

    assert await outbox.take() == [Update(one, [started(), delta(1), delta(2)]), Update(two, [delta(1)])]


async def test_a_full_outbox_makes_the_engine_wait_and_first_events_never() -> None:
    outbox = Outbox(asyncio.get_running_loop(), steps_max=2)
    one, passed = run(), threading.Event()

    def step() -> None:
        for number in range(3):
            outbox.put([Update(one, [delta(number)])])
        passed.set()

    thread = threading.Thread(target=step)
    thread.start()
    for number in range(50):
        outbox.put_now(Update(one, [delta(number)]))
    assert not await asyncio.to_thread(passed.wait, 0.1)

    await outbox.take()

    assert await asyncio.to_thread(passed.wait, 5)
    thread.join()
    await outbox.take()
    outbox.put([Update(one, [delta(4)])])
    outbox.put([Update(one, [delta(5)])])
    assert not outbox._steps_left.acquire(blocking=False)


async def test_steps_that_come_together_wake_the_event_loop_once() -> None:
    loop, one = _CountingLoop(), run()
    outbox = Outbox(loop, steps_max=9)  # type: ignore[arg-type]
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)

    for number in range(3):
        outbox.put([Update(one, [delta(number)])])

    assert await taking == [Update(one, [delta(0), delta(1), delta(2)])]
    assert loop.woken == 1
    outbox.put([Update(one, [delta(3)])])  # nobody waits: the next `take` finds it
    assert await outbox.take() == [Update(one, [delta(3)])]
    assert loop.woken == 1


class _CountingLoop:
    def __init__(self) -> None:
        self.woken = 0

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.woken += 1
        asyncio.get_running_loop().call_soon_threadsafe(callback)


async def test_a_closed_outbox_gives_what_is_left_and_then_nothing() -> None:
    outbox = Outbox(asyncio.get_running_loop(), steps_max=2)
    outbox.put([Update(run(), [delta(1)])])
    outbox.close()

    assert len(await outbox.take()) == 1
    assert await outbox.take() == []


async def test_taking_from_an_empty_outbox_waits_even_after_a_late_wake_up() -> None:
    outbox = Outbox(asyncio.get_running_loop(), steps_max=9)
    outbox.put([Update(run(), [delta(1)])])
    assert len(await outbox.take()) == 1  # before the wake-up that `put` scheduled has run
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert not taking.done()
    outbox.put([Update(run(), [delta(2)])])
    assert len(await asyncio.wait_for(taking, 3)) == 1
