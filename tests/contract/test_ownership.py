"""Claims, leases and hand-overs decide who writes for a job, in memory and on every kind of Redis."""

import asyncio

import pytest

from shared.domain.events import Deadline
from shared.domain.job import Priority
from shared.queue.protocols import LOST, SETTLED, Room
from tests.contract.conftest import LEASE_MS, TEN, Backend
from tests.factories import delta, done, make_job, started, write


async def test_a_silent_worker_loses_its_job_with_the_log_and_its_pen(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (old,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.append([write(old, started(), delta(1))])
    await backend.let_leases_run_out()

    (new,) = await backend.queue.claim("m", worker="b", limit=1)

    assert new.attempt == 2
    assert new.log == (started(), delta(1))
    assert await backend.queue.append([write(old, delta(2, "ghost"))]) == {job.id: LOST}
    assert await backend.queue.renew([old], worker="a") == [job.id]
    assert await backend.queue.settle(write(old, done(2)), worker="a") == LOST
    assert await backend.queue.settle(write(new, delta(2), done(3)), worker="b") == SETTLED
    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.events == (started(), delta(1), delta(2), done(3))


async def test_a_heartbeat_keeps_the_lease(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(), bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.let_leases_run_out()

    assert await backend.queue.renew([delivery], worker="a") == []
    assert await backend.queue.claim("m", worker="b", limit=1) == []


async def test_a_released_job_goes_on_at_once_and_costs_no_attempt(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (old,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.append([write(old, started())])
    waiting = asyncio.create_task(backend.queue.claim("m", worker="b", limit=4, wait_ms=4000))
    await asyncio.sleep(0.05)

    await backend.queue.release([old], worker="a")

    (new,) = await asyncio.wait_for(waiting, 3)
    assert new.job.id == job.id
    assert new.attempt == 1
    assert new.log == (started(),)
    assert await backend.queue.append([write(old, delta(1))]) == {job.id: LOST}


async def test_a_claim_stops_when_its_room_is_full(backend: Backend) -> None:
    narrow, wide, next_one = make_job(), make_job(n=3), make_job()
    for job in (narrow, wide, next_one):
        await backend.queue.enqueue(job, bounds=TEN)

    first = await backend.queue.claim("m", worker="a", limit=8, room=Room(2))
    second = await backend.queue.claim("m", worker="b", limit=8, room=Room(2))

    assert [d.job for d in first] == [narrow, wide]  # a job is claimed whole once it begins to fit
    assert [d.job for d in second] == [next_one]


async def test_a_waiting_job_that_is_too_wide_is_passed_over_and_keeps_its_turn(backend: Backend) -> None:
    running, wide = make_job(n=4, tenant="a"), make_job(n=4, tenant="a")
    other, urgent = make_job(n=4, tenant="b"), make_job(tenant="c", priority=Priority.INTERACTIVE)
    await backend.queue.enqueue(running, bounds=TEN)
    held = await backend.queue.claim("m", worker="w", limit=1)
    for job in (wide, other, urgent):
        await backend.queue.enqueue(job, bounds=TEN)

    beside = await backend.queue.claim("m", worker="w", limit=8, room=Room(5, 3, frozenset({"a"})))
    nothing = await backend.queue.claim("m", worker="w", limit=8, room=Room(5, 3, frozenset({"a"})))

    assert {d.job.id for d in beside} == {other.id, urgent.id}
    assert nothing == []
    assert await backend.queue.depth("m") == 1
    waiting = asyncio.create_task(backend.queue.claim("m", worker="w", limit=8, wait_ms=10_000))
    await backend.queue.settle(write(held[0], started(), done(1)), worker="w")  # this wakes the worker that waits
    assert [d.job for d in await asyncio.wait_for(waiting, 5)] == [wide]


async def test_a_running_job_is_handed_to_a_worker_with_room_for_all_of_it(backend: Backend) -> None:
    wide, narrow = make_job(n=3), make_job()
    for job in (wide, narrow):
        await backend.queue.enqueue(job, bounds=TEN)
    held = await backend.queue.claim("m", worker="a", limit=2)
    for _ in range(10):  # on a stalled machine, the time in which the job is left to other workers may pass
        await backend.queue.release(held, worker="a")
        held = await backend.queue.claim("m", worker="full", limit=2, room=Room(1))
        if [d.job for d in held] == [narrow]:
            break

    (roomy,) = await backend.queue.claim("m", worker="roomy", limit=2, room=Room(3))

    assert [d.job for d in held] == [narrow]
    assert roomy.job == wide


async def test_a_running_job_that_fits_nowhere_is_taken_all_the_same(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(n=3), bounds=TEN)
    held = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.release(held, worker="a")
    await backend.let_leases_run_out()

    assert await backend.queue.claim("m", worker="b", limit=1, room=Room(1))


async def test_the_run_deadline_counts_from_the_first_claim(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(run_deadline_ms=LEASE_MS + 200), bounds=TEN)
    (first,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.let_leases_run_out()
    (second,) = await backend.queue.claim("m", worker="b", limit=1)
    await backend.let_leases_run_out()
    (third,) = await backend.queue.claim("m", worker="c", limit=1)

    assert first.left_ms == pytest.approx(LEASE_MS + 200, abs=5)
    assert second.left_ms is not None
    assert second.left_ms < 200
    assert (second.late, third.late) == (None, Deadline.RUN)


async def test_on_its_last_attempt_a_job_is_alone_and_its_neighbours_are_acquitted(backend: Backend) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        await backend.queue.enqueue(job, bounds=TEN)
    for worker in "ab":
        for delivery in await backend.queue.claim("m", worker=worker, limit=5):
            assert not delivery.isolated
        await backend.let_leases_run_out()

    (first,) = await backend.queue.claim("m", worker="c", limit=5)
    assert first.isolated
    assert first.attempt == 3
    assert await backend.queue.claim("m", worker="c", limit=5) == []  # other jobs wait until it makes progress
    await backend.queue.append([write(first, started(), delta(1))])
    (second,) = await backend.queue.claim("m", worker="c", limit=5)
    assert second.isolated
    await backend.let_leases_run_out()  # the job kills its worker

    after = {d.job.id: d for _ in range(3) for d in await backend.queue.claim("m", worker="d", limit=5)}

    assert after[first.job.id].attempt <= 3
    assert after[second.job.id].attempt == 4
    assert sum(delivery.isolated for delivery in after.values()) <= 1


async def test_a_job_that_gets_on_may_lose_any_number_of_workers(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(), bounds=TEN)
    for number in range(5):
        (delivery,) = await backend.queue.claim("m", worker=f"w{number}", limit=1)
        assert delivery.attempt <= 2
        assert not delivery.isolated
        first = len(delivery.log)
        opening = [started()] if first == 0 else []
        await backend.queue.append([write(delivery, *opening, delta(first + len(opening)))])
        await backend.let_leases_run_out()
