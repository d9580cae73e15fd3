"""What every queue and channel does, on memory and on both kinds of Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from shared.domain.errors import IdempotencyKeyReused, QueueFull, StorageFull
from shared.domain.events import REQUEST_FAULTS, Cancelled, Completed, Deadline, Delta, Expired, Failed, Finished, Usage
from shared.domain.job import Job, Priority
from shared.domain.lifecycle import State
from shared.queue.event_channel import RedisChannel
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import LOST, SETTLED, Bounds, Idempotency, Room, StoredRecord
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect
from tests.conftest import SERVERS, ServerOf
from tests.factories import delta, done, make_job, started, write

LEASE_MS = 500
TEN = Bounds(jobs_max=10)


@dataclass
class Backend:
    queue: MemoryQueue | RedisQueue
    channel: MemoryQueue | RedisChannel
    let_leases_run_out: Callable[[], Awaitable[None]]
    stored: Callable[[str], Awaitable[bool]]  # whether there is a record of this key


@pytest.fixture(params=["memory", *SERVERS])
async def backend(request: pytest.FixtureRequest, server_of: ServerOf) -> AsyncIterator[Backend]:
    if request.param == "memory":
        now = [0.0]
        memory = MemoryQueue(lambda: now[0], lease_ms=LEASE_MS)

        async def jump() -> None:
            now[0] += LEASE_MS + 1

        async def kept(key: str) -> bool:
            return key in memory.stored

        yield Backend(memory, memory, jump, kept)
        return
    client = connect(server_of(request.param).url)
    await client.flushall()

    async def idle() -> None:
        await asyncio.sleep((LEASE_MS + 20) / 1000)  # the lease is counted by the server's own clock

    async def exists(key: str) -> bool:
        return bool(await client.exists(key))

    yield Backend(RedisQueue(client, lease_ms=LEASE_MS), RedisChannel(client), idle, exists)
    await client.aclose()


async def test_a_job_is_claimed_once_oldest_first(backend: Backend) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        await backend.queue.enqueue(job, bounds=TEN)

    first = await backend.queue.claim("m", worker="a", limit=2)
    second = await backend.queue.claim("m", worker="b", limit=5)

    assert [d.job for d in first] == jobs[:2]
    assert [d.job for d in second] == jobs[2:]
    assert [d.attempt for d in first + second] == [1, 1, 1]


async def test_enqueue_tells_how_many_wait_and_is_repeatable(backend: Backend) -> None:
    job = make_job()

    assert (await backend.queue.enqueue(job, bounds=TEN)).ahead == 0
    await backend.queue.enqueue(job, bounds=TEN)
    assert (await backend.queue.enqueue(make_job(), bounds=TEN)).ahead == 1
    assert await backend.queue.depth("m") == 2


async def test_a_full_queue_refuses_and_keeps_nothing(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(), bounds=Bounds(jobs_max=1))
    refused = make_job()

    with pytest.raises(QueueFull) as caught:
        await backend.queue.enqueue(refused, bounds=Bounds(jobs_max=1))

    assert 1 <= caught.value.retry_after_s <= 120
    assert (await backend.channel.read([(refused.id, 0)]))[0].state is None


async def test_a_waiting_claim_wakes_when_a_job_arrives(backend: Backend) -> None:
    claiming = asyncio.create_task(backend.queue.claim("m", worker="a", limit=4, wait_ms=5000))
    await asyncio.sleep(0.05)
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)

    assert [d.job.id for d in await asyncio.wait_for(claiming, 4)] == [job.id]


@pytest.mark.parametrize("name", SERVERS)
async def test_a_job_wakes_one_of_many_that_wait(name: str, server_of: ServerOf) -> None:
    client = connect(server_of(name).url)
    await client.flushall()
    queue = RedisQueue(client)
    waiting = [asyncio.create_task(queue.claim("m", worker=f"w{n}", limit=4, wait_ms=20_000)) for n in range(16)]

    async def blocked() -> int:
        return int((await client.info("clients"))["blocked_clients"])

    while await blocked() < 16:
        await asyncio.wait(waiting, timeout=0.01)
    await client.config_resetstat()
    jobs = [make_job(), make_job()]
    claims = []
    for job in jobs:
        await queue.enqueue(job, bounds=TEN)
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        claims += [delivery.job.id for task in done for delivery in task.result()]
        waiting = list(rest)
    scripts: Any = await client.info("commandstats")

    assert claims == [job.id for job in jobs]
    assert (await blocked(), scripts["cmdstat_evalsha"]["calls"]) == (14, 4)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await client.aclose()


async def test_a_claim_in_vain_is_empty(backend: Backend) -> None:
    assert await backend.queue.claim("m", worker="a", limit=4, wait_ms=20) == []


async def test_events_are_logged_and_heard(backend: Backend) -> None:
    heard = backend.channel.listen("api")
    hearing = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0.1)
    job = make_job()
    await backend.queue.enqueue(job, subscriber="api", bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert await backend.queue.append([write(delivery, started(), delta(1))]) == {}

    ((heard_id, events),) = await asyncio.wait_for(hearing, 3)
    assert (heard_id, list(events)) == (job.id, [started(), delta(1)])
    (page,) = await backend.channel.read([(job.id, 1)])
    assert page.state is State.STARTED
    assert page.events == (delta(1),)


async def test_an_append_repeated_is_written_once(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    step = write(delivery, started(), delta(1))

    await backend.queue.append([step])
    await backend.queue.append([step])
    await backend.queue.append([write(delivery, delta(1), delta(2))])

    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.events == (started(), delta(1), delta(2))


async def test_settle_ends_a_job_once(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert await backend.queue.settle(write(delivery, started(), delta(1), done(2)), worker="a") == SETTLED
    assert await backend.queue.settle(write(delivery, done(2)), worker="a") == LOST

    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.state is State.FINISHED
    assert page.events == (started(), delta(1), done(2))
    await backend.let_leases_run_out()
    assert await backend.queue.claim("m", worker="b", limit=1) == []


@pytest.mark.parametrize("code", sorted(REQUEST_FAULTS))
async def test_a_wrong_request_is_no_failed_job_and_its_error_stays_readable(backend: Backend, code: str) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="w", limit=1)
    refused = done(0, Failed(code=code, message="no"))

    assert await backend.queue.settle(write(delivery, refused), worker="w") == SETTLED

    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.state is State.CANCELED
    assert page.events == (refused,)
    assert await backend.queue.replay(job.id, as_id="again") == (State.CANCELED, "")
    assert await backend.queue.cancel(job.id) is State.CANCELED
    assert await backend.queue.claim("m", worker="w", limit=1) == []


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

    assert [d.job for d in first] == [narrow, wide]  # a job that began to fit is not torn apart
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
    await backend.queue.settle(write(held[0], started(), done(1)), worker="w")  # which wakes whoever passed it over
    assert [d.job for d in await asyncio.wait_for(waiting, 5)] == [wide]


async def test_a_running_job_is_handed_to_a_worker_with_room_for_all_of_it(backend: Backend) -> None:
    wide, narrow = make_job(n=3), make_job()
    for job in (wide, narrow):
        await backend.queue.enqueue(job, bounds=TEN)
    held = await backend.queue.claim("m", worker="a", limit=2)
    for _ in range(10):  # the moment in which it is left to others may pass by, on a machine that stands still
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


async def test_a_waiting_job_can_be_cancelled(backend: Backend) -> None:
    job, other = make_job(), make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    await backend.queue.enqueue(other, bounds=TEN)

    assert await backend.queue.cancel(job.id) is State.QUEUED

    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.state is State.CANCELED
    assert page.events == (Finished(seq=0, outcome=Cancelled()),)
    assert [d.job.id for d in await backend.queue.claim("m", worker="a", limit=5)] == [other.id]


async def test_a_running_job_can_be_cancelled_and_its_worker_is_told(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    telling = asyncio.ensure_future(anext(backend.channel.dropped("a")))
    await asyncio.sleep(0.1)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.append([write(delivery, started())])

    assert await backend.queue.cancel(job.id) is State.STARTED

    assert await asyncio.wait_for(telling, 3) == job.id
    assert await backend.queue.append([write(delivery, delta(1))]) == {job.id: LOST}
    assert await backend.queue.settle(write(delivery, done(1)), worker="a") == LOST
    assert await backend.queue.cancel(job.id) is State.CANCELED
    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.events == (started(), Finished(seq=1, outcome=Cancelled()))


async def test_cancelling_what_is_not_there_says_so(backend: Backend) -> None:
    assert await backend.queue.cancel("chatcmpl-nobody") is None
    assert await backend.queue.replay("chatcmpl-nobody", as_id="x") == (None, "")
    assert await backend.queue.attach("chatcmpl-nobody", subscriber="x") is None


async def test_a_failed_job_is_replayed_once_as_a_job_of_its_own(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    failure = Failed(code="engine_error", message="no", detail="Traceback ..")
    await backend.queue.settle(write(delivery, started(), delta(1), done(2, failure)), worker="a")

    assert await backend.queue.replay(job.id, as_id="again") == (State.FAILED, "again")
    assert await backend.queue.replay(job.id, as_id="more") == (State.FAILED, "again")

    (again,) = await backend.queue.claim("m", worker="a", limit=5)
    assert (again.job.id, again.job.request, again.job.sampling) == ("again", job.request, job.sampling)
    assert (again.attempt, again.log, again.late) == (1, (), None)
    assert await backend.queue.replay("again", as_id="x") == (State.STARTED, "")
    (before,) = await backend.channel.read([(job.id, 0)])
    assert before.events == (started(), delta(1), done(2, failure))


async def test_a_job_that_waited_too_long_is_marked_late(backend: Backend) -> None:
    job = make_job(patience_ms=1)
    await backend.queue.enqueue(job, bounds=TEN)
    await backend.let_leases_run_out()

    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert delivery.late is Deadline.QUEUE
    assert await backend.queue.settle(write(delivery, done(0, Expired())), worker="a") == SETTLED
    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.state is State.FAILED


async def test_a_gap_in_a_log_is_refused(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert await backend.queue.append([write(delivery, Delta(seq=5, choice=0, text="x", token_ids=(1,)))]) == {
        job.id: 0
    }


async def test_the_run_deadline_counts_from_the_first_claim(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(run_ms=LEASE_MS + 200), bounds=TEN)
    (first,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.let_leases_run_out()
    (second,) = await backend.queue.claim("m", worker="b", limit=1)
    await backend.let_leases_run_out()
    (third,) = await backend.queue.claim("m", worker="c", limit=1)

    assert first.left_ms == pytest.approx(LEASE_MS + 200, abs=5)
    assert second.left_ms is not None
    assert second.left_ms < 200
    assert (second.late, third.late) == (None, Deadline.RUN)


async def test_a_repeated_request_finds_its_job(backend: Backend) -> None:
    key, job = Idempotency(key="t:k", fingerprint="f"), make_job()
    first = await backend.queue.enqueue(job, bounds=TEN, idempotency=key)

    again = await backend.queue.enqueue(make_job(), bounds=TEN, idempotency=key, subscriber="api2")

    assert (first.attached, again.attached, again.job_id) == (False, True, job.id)
    assert again.created_ms == job.created_ms
    assert await backend.queue.depth("m") == 1
    with pytest.raises(IdempotencyKeyReused):
        await backend.queue.enqueue(make_job(), bounds=TEN, idempotency=Idempotency(key="t:k", fingerprint="g"))
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.settle(write(delivery, started(), done(1)), worker="a")
    assert (await backend.queue.enqueue(make_job(), bounds=TEN, idempotency=key)).attached


async def test_a_repeated_request_runs_again_when_its_job_came_to_nothing(backend: Backend) -> None:
    key, job = Idempotency(key="t:k", fingerprint="f"), make_job()
    await backend.queue.enqueue(job, bounds=TEN, idempotency=key)
    await backend.queue.cancel(job.id)

    again = await backend.queue.enqueue(make_job(), bounds=TEN, idempotency=key)

    assert not again.attached
    assert again.job_id != job.id


async def test_leaving_cancels_unless_another_reader_is_there(backend: Backend) -> None:
    heard = backend.channel.listen("api2")
    hearing = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0.1)
    job = make_job()
    await backend.queue.enqueue(job, subscriber="api1", bounds=TEN)
    assert await backend.queue.attach(job.id, subscriber="api2") is State.QUEUED

    await backend.queue.leave(job.id, subscriber="api1")

    assert (await backend.channel.read([(job.id, 0)]))[0].state is State.QUEUED
    await backend.queue.leave(job.id, subscriber="api2")
    assert (await backend.channel.read([(job.id, 0)]))[0].state is State.CANCELED
    await asyncio.wait_for(hearing, 3)


async def claim_all(backend: Backend) -> list[Job]:
    """One by one, each settled at the length that was thought."""
    jobs = []
    while claimed := await backend.queue.claim("m", worker="a", limit=1):
        usage = Usage(prompt_tokens=claimed[0].job.prompt_tokens_estimate, completion_tokens=100)
        await backend.queue.settle(write(claimed[0], started(), done(1, Completed(usage=usage))), worker="a")
        jobs.append(claimed[0].job)
    return jobs


async def test_urgent_jobs_come_first_and_no_class_starves(backend: Backend) -> None:
    for priority in (Priority.BATCH, Priority.STANDARD, Priority.INTERACTIVE):
        for _ in range(21):
            await backend.queue.enqueue(make_job(priority=priority, max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.priority for job in await claim_all(backend)]

    assert order[0] is Priority.INTERACTIVE
    first = [order[:21].count(priority) for priority in Priority]
    assert first == pytest.approx([16, 4, 1], abs=1)
    assert [order.count(priority) for priority in Priority] == [21, 21, 21]


async def test_tenants_share_by_tokens_and_weight_and_a_flood_delays_nobody_else(backend: Backend) -> None:
    for _ in range(30):
        await backend.queue.enqueue(make_job(tenant="flood", max_tokens=100), bounds=Bounds(jobs_max=100))
    for number in range(4):
        await backend.queue.enqueue(make_job(tenant=f"t{number}", max_tokens=100), bounds=Bounds(jobs_max=100))
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="heavy", weight=2, max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.tenant for job in await claim_all(backend)]

    assert set(order[:6]) == {"flood", "heavy", "t0", "t1", "t2", "t3"}
    assert order[:16].count("heavy") == pytest.approx(2 * order[:16].count("flood"), abs=2)


async def test_a_tenant_that_was_away_saves_nothing_up(backend: Backend) -> None:
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="busy", max_tokens=100), bounds=Bounds(jobs_max=100))
    for _ in range(5):
        (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
        await backend.queue.settle(write(delivery, started(), done(1)), worker="a")
    for _ in range(5):
        await backend.queue.enqueue(make_job(tenant="late", max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.tenant for job in await claim_all(backend)]

    assert order[:6].count("busy") >= 2


async def test_a_full_queue_has_room_for_newcomers(backend: Backend) -> None:
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="flood"), bounds=TEN)
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(make_job(tenant="flood"), bounds=TEN)

    for _ in range(2):
        await backend.queue.enqueue(make_job(tenant="new"), bounds=TEN)
    with pytest.raises(QueueFull) as caught:
        await backend.queue.enqueue(make_job(tenant="new"), bounds=TEN)

    assert caught.value.reason == "queue_full"
    assert caught.value.position == 13


async def test_a_paused_model_claims_nothing_new_but_resumes_what_runs(backend: Backend) -> None:
    running, waiting = make_job(), make_job()
    await backend.queue.enqueue(running, bounds=TEN)
    await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.enqueue(waiting, bounds=TEN)
    await backend.queue.pause("m", paused=True)
    await backend.let_leases_run_out()

    assert [d.job.id for d in await backend.queue.claim("m", worker="b", limit=5)] == [running.id]
    await backend.queue.pause("m", paused=False)
    assert [d.job.id for d in await backend.queue.claim("m", worker="b", limit=5)] == [waiting.id]


async def test_a_model_is_forgotten_when_nothing_of_it_waits_or_runs(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    await backend.queue.pause("m", paused=True)
    waiting = await backend.queue.forget("m")
    await backend.queue.pause("m", paused=False)
    (delivery,) = await backend.queue.claim("m", worker="w", limit=1)
    running = await backend.queue.forget("m")
    await backend.queue.settle(write(delivery, done(0)), worker="w")
    await backend.queue.pause("m", paused=True)

    assert (waiting.jobs, running.jobs) == (1, 1)
    assert not await backend.queue.forget("m")
    assert not await backend.queue.forget("m")  # a second time it changes nothing
    await backend.queue.enqueue(make_job(), bounds=TEN)
    assert await backend.queue.claim("m", worker="w", limit=1)  # it is no longer paused


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
    assert await backend.queue.claim("m", worker="c", limit=5) == []  # others wait until it gets on
    await backend.queue.append([write(first, started(), delta(1))])
    (second,) = await backend.queue.claim("m", worker="c", limit=5)
    assert second.isolated
    await backend.let_leases_run_out()  # it kills its worker

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


async def test_a_gap_in_a_settlement_is_refused(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(), bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert await backend.queue.settle(write(delivery, done(5)), worker="a") == 0


def record_of(
    job: Job, text: str = "what was asked", *, ttl_s: int = 60, tenant_bytes_max: int = 10_000
) -> StoredRecord:
    return StoredRecord(
        key=f"penstock:chat:{job.id}",
        id=job.id,
        tenant=job.tenant,
        created_ms=job.created_ms,
        data=text,
        ttl_s=ttl_s,
        tenant_bytes_max=tenant_bytes_max,
        index=f"penstock:chats:{job.tenant}",
    )


async def submit_stored(backend: Backend, text: str, *, ttl_s: int = 60, bounds: Bounds = TEN) -> StoredRecord:
    job = make_job(tenant="t")
    record = record_of(job, text, ttl_s=ttl_s)
    await backend.queue.enqueue(job, bounds=bounds, record=record)
    return record


async def test_a_record_is_stored_with_its_job_and_never_without(backend: Backend) -> None:
    accepted = await submit_stored(backend, "first")
    refused = make_job(tenant="t")

    with pytest.raises(QueueFull):
        await backend.queue.enqueue(refused, bounds=Bounds(jobs_max=1), record=record_of(refused))

    assert await backend.stored(accepted.key)
    assert not await backend.stored(record_of(refused).key)


async def test_a_repeated_request_stores_nothing_of_its_own(backend: Backend) -> None:
    key = Idempotency(key="k", fingerprint="f")
    first, again = make_job(), make_job()
    await backend.queue.enqueue(first, bounds=TEN, idempotency=key, record=record_of(first))

    accepted = await backend.queue.enqueue(again, bounds=TEN, idempotency=key, record=record_of(again))

    assert accepted.attached
    assert await backend.stored(record_of(first).key)
    assert not await backend.stored(record_of(again).key)


async def test_a_tenant_stores_only_so_many_bytes_and_a_refused_job_is_none(backend: Backend) -> None:
    first = await submit_stored(backend, "x" * 6000)
    job = make_job(tenant="t")

    with pytest.raises(StorageFull) as refused:
        await backend.queue.enqueue(job, bounds=TEN, record=record_of(job, "é" * 2000))

    assert 6000 < refused.value.used < refused.value.bytes_max == 10_000
    assert (await backend.channel.read([(job.id, 0)]))[0].state is None
    assert not await backend.stored(record_of(job).key)
    await backend.queue.enqueue(make_job(tenant="t"), bounds=TEN)  # what stores nothing is welcome
    other = make_job(tenant="other")
    await backend.queue.enqueue(other, bounds=TEN, record=record_of(other, "x" * 6000))

    await backend.queue.discard(first)
    await backend.queue.discard(first)

    assert not await backend.stored(first.key)
    await submit_stored(backend, "x" * 9000)
    with pytest.raises(StorageFull):
        await submit_stored(backend, "x" * 9000)


async def test_a_record_that_is_replaced_counts_once(backend: Backend) -> None:
    record = await submit_stored(backend, "x" * 6000)

    for size in (7000, 9000, 1000):
        await backend.queue.store(replace(record, data="x" * size))

    with pytest.raises(StorageFull):
        await backend.queue.store(replace(record, data="x" * 9900))
    await submit_stored(backend, "x" * 8000)


async def test_an_expired_record_gives_its_bytes_back(backend: Backend) -> None:
    record = await submit_stored(backend, "x" * 6000, ttl_s=1)
    for _ in range(4):
        await backend.let_leases_run_out()

    await submit_stored(backend, "x" * 9000)

    assert not await backend.stored(record.key)


async def test_a_failed_request_of_a_full_queue_frees_no_bytes_that_it_never_had(backend: Backend) -> None:
    await submit_stored(backend, "x" * 6000)
    job = make_job(tenant="t")
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(job, bounds=Bounds(jobs_max=1), record=record_of(job, "x" * 3000))

    await backend.queue.discard(record_of(job, "x" * 3000))

    with pytest.raises(StorageFull):
        await submit_stored(backend, "x" * 4000)


async def test_bytes_that_wait_are_bounded_and_come_free_again(backend: Backend) -> None:
    bounds = Bounds(jobs_max=100, bytes_max=10_000)
    await backend.queue.enqueue(make_job(prompt="x" * 50_000), bounds=bounds)  # alone, any job may wait

    with pytest.raises(QueueFull) as refused:
        await backend.queue.enqueue(make_job(), bounds=bounds)
    assert refused.value.reason == "queue_bytes_full"

    await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.enqueue(make_job(prompt="x" * 6000), bounds=bounds)
    cancelled = make_job(prompt="x" * 2000)
    await backend.queue.enqueue(cancelled, bounds=bounds)
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(make_job(prompt="x" * 2000), bounds=bounds)
    await backend.queue.cancel(cancelled.id)
    await backend.queue.enqueue(make_job(prompt="x" * 2000), bounds=bounds)
