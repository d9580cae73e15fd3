"""What every JobQueue and JobChannel does, on memory and on both kinds of Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from shared.errors import QueueFull
from shared.events import Cancelled, Delta, Expired, Failed, Finished
from shared.lifecycle import State
from shared.memory import MemoryQueue
from shared.queue import JobChannel, JobQueue
from shared.redis_channel import RedisChannel
from shared.redis_client import connect
from shared.redis_queue import RedisQueue
from tests.conftest import SERVERS, ServerOf
from tests.factories import delta, done, make_job, started, write

LEASE_MS = 500


@dataclass
class House:
    queue: JobQueue
    channel: JobChannel
    let_leases_run_out: Callable[[], Awaitable[None]]


@pytest.fixture(params=["memory", *SERVERS])
async def house(request: pytest.FixtureRequest, server_of: ServerOf) -> AsyncIterator[House]:
    if request.param == "memory":
        now = [0.0]
        memory = MemoryQueue(lambda: now[0], lease_ms=LEASE_MS)

        async def jump() -> None:
            now[0] += LEASE_MS + 1

        yield House(memory, memory, jump)
        return
    client = connect(server_of(request.param).url)
    await client.flushall()

    async def idle() -> None:
        await asyncio.sleep((LEASE_MS + 20) / 1000)  # the lease is counted by the server's own clock

    yield House(RedisQueue(client, lease_ms=LEASE_MS), RedisChannel(client), idle)
    await client.aclose()


async def test_a_job_is_claimed_once_oldest_first(house: House) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        await house.queue.enqueue(job, jobs_max=10)

    first = await house.queue.claim("m", worker="a", limit=2)
    second = await house.queue.claim("m", worker="b", limit=5)

    assert [d.job for d in first] == jobs[:2]
    assert [d.job for d in second] == jobs[2:]
    assert [d.attempt for d in first + second] == [1, 1, 1]


async def test_enqueue_tells_how_many_wait_and_is_repeatable(house: House) -> None:
    job = make_job()

    assert await house.queue.enqueue(job, jobs_max=10) == 0
    await house.queue.enqueue(job, jobs_max=10)
    assert await house.queue.enqueue(make_job(), jobs_max=10) == 1
    assert await house.queue.depth("m") == 2


async def test_a_full_queue_refuses_and_keeps_nothing(house: House) -> None:
    await house.queue.enqueue(make_job(), jobs_max=1)
    refused = make_job()

    with pytest.raises(QueueFull) as caught:
        await house.queue.enqueue(refused, jobs_max=1)

    assert 1 <= caught.value.retry_after_s <= 120
    assert (await house.channel.read([(refused.id, 0)]))[0].state is None


async def test_a_waiting_claim_wakes_when_a_job_arrives(house: House) -> None:
    claiming = asyncio.create_task(house.queue.claim("m", worker="a", limit=4, wait_ms=5000))
    await asyncio.sleep(0.05)
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)

    assert [d.job.id for d in await asyncio.wait_for(claiming, 4)] == [job.id]


async def test_a_claim_in_vain_is_empty(house: House) -> None:
    assert await house.queue.claim("m", worker="a", limit=4, wait_ms=20) == []


async def test_events_are_logged_and_heard(house: House) -> None:
    heard = house.channel.listen("api")
    hearing = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0.1)
    job = make_job()
    await house.queue.enqueue(job, subscriber="api", jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)

    assert await house.queue.append([write(delivery, started(), delta(1))]) == []

    ((heard_id, events),) = await asyncio.wait_for(hearing, 3)
    assert (heard_id, list(events)) == (job.id, [started(), delta(1)])
    (page,) = await house.channel.read([(job.id, 1)])
    assert page.state is State.STARTED
    assert page.events == (delta(1),)


async def test_an_append_repeated_is_written_once(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)
    step = write(delivery, started(), delta(1))

    await house.queue.append([step])
    await house.queue.append([step])
    await house.queue.append([write(delivery, delta(1), delta(2))])

    (page,) = await house.channel.read([(job.id, 0)])
    assert page.events == (started(), delta(1), delta(2))


async def test_settle_ends_a_job_once(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)

    assert await house.queue.settle(write(delivery, started(), delta(1), done(2)), worker="a")
    assert not await house.queue.settle(write(delivery, done(2)), worker="a")

    (page,) = await house.channel.read([(job.id, 0)])
    assert page.state is State.FINISHED
    assert page.events == (started(), delta(1), done(2))
    await house.let_leases_run_out()
    assert await house.queue.claim("m", worker="b", limit=1) == []


async def test_a_silent_worker_loses_its_job_with_the_log_and_its_pen(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (old,) = await house.queue.claim("m", worker="a", limit=1)
    await house.queue.append([write(old, started(), delta(1))])
    await house.let_leases_run_out()

    (new,) = await house.queue.claim("m", worker="b", limit=1)

    assert new.attempt == 2
    assert new.log == (started(), delta(1))
    assert await house.queue.append([write(old, delta(2, "ghost"))]) == [job.id]
    assert await house.queue.renew([old], worker="a") == [job.id]
    assert not await house.queue.settle(write(old, done(2)), worker="a")
    assert await house.queue.settle(write(new, delta(2), done(3)), worker="b")
    (page,) = await house.channel.read([(job.id, 0)])
    assert page.events == (started(), delta(1), delta(2), done(3))


async def test_a_heartbeat_keeps_the_lease(house: House) -> None:
    await house.queue.enqueue(make_job(), jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)
    await house.let_leases_run_out()

    assert await house.queue.renew([delivery], worker="a") == []
    assert await house.queue.claim("m", worker="b", limit=1) == []


async def test_a_released_job_goes_on_at_once_and_costs_no_attempt(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (old,) = await house.queue.claim("m", worker="a", limit=1)
    await house.queue.append([write(old, started())])
    waiting = asyncio.create_task(house.queue.claim("m", worker="b", limit=4, wait_ms=4000))
    await asyncio.sleep(0.05)

    await house.queue.release(old, worker="a")

    (new,) = await asyncio.wait_for(waiting, 3)
    assert new.job.id == job.id
    assert new.attempt == 1
    assert new.log == (started(),)
    assert await house.queue.append([write(old, delta(1))]) == [job.id]


async def test_a_waiting_job_can_be_cancelled(house: House) -> None:
    job, other = make_job(), make_job()
    await house.queue.enqueue(job, jobs_max=10)
    await house.queue.enqueue(other, jobs_max=10)

    assert await house.queue.cancel(job.id) is State.QUEUED

    (page,) = await house.channel.read([(job.id, 0)])
    assert page.state is State.CANCELED
    assert page.events == (Finished(seq=0, outcome=Cancelled()),)
    assert [d.job.id for d in await house.queue.claim("m", worker="a", limit=5)] == [other.id]


async def test_a_running_job_can_be_cancelled_and_its_worker_is_told(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    telling = asyncio.ensure_future(anext(house.channel.dropped("a")))
    await asyncio.sleep(0.1)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)
    await house.queue.append([write(delivery, started())])

    assert await house.queue.cancel(job.id) is State.STARTED

    assert await asyncio.wait_for(telling, 3) == job.id
    assert await house.queue.append([write(delivery, delta(1))]) == [job.id]
    assert not await house.queue.settle(write(delivery, done(1)), worker="a")
    assert await house.queue.cancel(job.id) is State.CANCELED
    (page,) = await house.channel.read([(job.id, 0)])
    assert page.events == (started(), Finished(seq=1, outcome=Cancelled()))


async def test_cancelling_what_is_not_there_says_so(house: House) -> None:
    assert await house.queue.cancel("chatcmpl-nobody") is None
    assert await house.queue.replay("chatcmpl-nobody") is None


async def test_a_failed_job_runs_again_from_the_start(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)
    failure = Failed(code="engine_error", message="no", detail="Traceback ..")
    await house.queue.settle(write(delivery, started(), delta(1), done(2, failure)), worker="a")

    assert await house.queue.replay(job.id) is State.FAILED

    (again,) = await house.queue.claim("m", worker="a", limit=1)
    assert again.job == job
    assert (again.attempt, again.log, again.late) == (1, (), False)
    assert await house.queue.replay(job.id) is State.STARTED


async def test_a_job_that_waited_too_long_is_marked_late(house: House) -> None:
    job = make_job(patience_ms=1)
    await house.queue.enqueue(job, jobs_max=10)
    await house.let_leases_run_out()

    (delivery,) = await house.queue.claim("m", worker="a", limit=1)

    assert delivery.late
    assert await house.queue.settle(write(delivery, done(0, Expired())), worker="a")
    (page,) = await house.channel.read([(job.id, 0)])
    assert page.state is State.FAILED


async def test_a_gap_in_a_log_is_refused(house: House) -> None:
    job = make_job()
    await house.queue.enqueue(job, jobs_max=10)
    (delivery,) = await house.queue.claim("m", worker="a", limit=1)

    assert await house.queue.append([write(delivery, Delta(seq=5, choice=0, text="x", token_ids=(1,)))]) == [job.id]
