"""The behaviour that every queue and channel shares, in memory and on every kind of Redis."""

import asyncio
from typing import Any

import pytest

from shared.domain.errors import IdempotencyKeyReused, QueueFull
from shared.domain.events import REQUEST_FAULTS, Cancelled, Deadline, Delta, Expired, Failed, Finished
from shared.domain.lifecycle import State
from shared.queue.protocols import LOST, SETTLED, Bounds, Idempotency
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect
from tests.conftest import SERVERS, ServerOf
from tests.contract.conftest import TEN, Backend
from tests.factories import delta, done, make_job, started, write


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


async def test_a_failed_job_is_replayed_by_another_model(backend: Backend) -> None:
    job = make_job()
    await backend.queue.enqueue(job, bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.settle(
        write(delivery, started(), done(1, Failed(code="engine_error", message="no"))), worker="a"
    )

    assert await backend.queue.replay(job.id, as_id="again", model="other") == (State.FAILED, "again")

    assert await backend.queue.claim("m", worker="a", limit=5) == []
    (again,) = await backend.queue.claim("other", worker="b", limit=5)
    assert (again.job.id, again.job.model, again.job.request) == ("again", "other", job.request)


async def test_a_job_that_waited_too_long_is_marked_late(backend: Backend) -> None:
    job = make_job(queue_deadline_ms=1)
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
    waiting = await backend.queue.forget_model("m")
    await backend.queue.pause("m", paused=False)
    (delivery,) = await backend.queue.claim("m", worker="w", limit=1)
    running = await backend.queue.forget_model("m")
    await backend.queue.settle(write(delivery, done(0)), worker="w")
    await backend.queue.pause("m", paused=True)

    assert (waiting.jobs, running.jobs) == (1, 1)
    assert not await backend.queue.forget_model("m")
    assert not await backend.queue.forget_model("m")  # a second call changes nothing
    await backend.queue.enqueue(make_job(), bounds=TEN)
    assert await backend.queue.claim("m", worker="w", limit=1)  # it is no longer paused


async def test_a_gap_in_a_settlement_is_refused(backend: Backend) -> None:
    await backend.queue.enqueue(make_job(), bounds=TEN)
    (delivery,) = await backend.queue.claim("m", worker="a", limit=1)

    assert await backend.queue.settle(write(delivery, done(5)), worker="a") == 0
