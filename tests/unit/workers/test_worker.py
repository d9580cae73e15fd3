"""A worker on the queue in memory refuses, resumes and hands over jobs."""

import asyncio
from typing import Any, ClassVar

import pytest

from shared.domain.errors import QueueUnavailable
from shared.domain.events import Completed, Deadline, Expired, Failed, Finished
from shared.domain.lifecycle import State
from shared.observability.metrics import WorkerMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import SLEEP, SLEEP_NOW, WAKE
from tests.factories import make_job
from tests.running_workers import (
    INFO,
    Clock,
    eventually,
    heard,
    held_job,
    log_of,
    make_worker,
    outcome_of,
    submit,
    tell_worker,
    text_of,
    working,
)
from workers.engines.scripted import ScriptedEngine, SleepingLoop
from workers.loop.intake import ROOM_S
from workers.loop.worker import Worker
from workers.protocols import OutOfMemory
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled


async def test_jobs_are_computed_together_and_completed(queue: MemoryQueue) -> None:
    jobs = [await submit(queue, make_job(max_tokens=5)) for _ in range(10)]

    async with working(make_worker(queue)):
        outcomes = [await outcome_of(queue, job) for job in jobs]

    assert all(isinstance(outcome, Completed) for outcome in outcomes)


async def test_a_worker_whose_redis_goes_while_it_loads_is_announced_when_it_is_back(queue: MemoryQueue) -> None:
    announced, answers = asyncio.Event(), iter([False, False, True])

    async def announce() -> None:
        if not next(answers, True):
            raise QueueUnavailable("Redis does not serve")
        announced.set()

    async with working(make_worker(queue, announce=announce)):
        await asyncio.wait_for(announced.wait(), 5)
        job = await submit(queue, make_job())
        assert isinstance(await outcome_of(queue, job), Completed)


async def test_a_late_job_expires_without_a_token(queue: MemoryQueue, clock: Clock) -> None:
    job = make_job(queue_deadline_ms=10)
    await submit(queue, job)
    clock.now_ms += 11

    async with working(make_worker(queue)):
        assert await outcome_of(queue, job) == Expired()

    assert len(await log_of(queue, job)) == 1


async def test_a_prompt_that_does_not_fit_is_refused_by_name(queue: MemoryQueue) -> None:
    job = make_job(max_tokens=1000)
    await submit(queue, job)

    async with working(make_worker(queue)):
        outcome = await outcome_of(queue, job)

    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.param) == ("context_length_exceeded", "messages")


async def test_a_job_claimed_too_often_fails_as_poison(queue: MemoryQueue, clock: Clock) -> None:
    job = make_job()
    await submit(queue, job)
    for _ in range(3):
        assert await queue.claim("m", worker="dying", limit=1)
        clock.now_ms += 10_000

    async with working(make_worker(queue, attempts_max=3)):
        outcome = await outcome_of(queue, job)

    assert isinstance(outcome, Failed)
    assert outcome.code == "poison"


async def test_while_a_claimed_job_waits_for_memory_no_more_are_claimed(queue: MemoryQueue) -> None:
    jobs = [await submit(queue, make_job(prompt=f"{n} " + "word " * 400, max_tokens=20)) for n in range(4)]

    async with working(make_worker(queue, step_ms=10, sequences_max=8, blocks=63)):
        await heard(queue, jobs[0], seq=2)
        late = await submit(queue, make_job(max_tokens=1))
        await heard(queue, jobs[0], seq=10)
        (page,) = await queue.read([(late.id, 0)])
        assert page.state is State.QUEUED
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in [*jobs, late]])


class OneAtATime(ScriptedEngine):
    def step(self, batch: Batch) -> list[Sampled]:
        if len(batch.rows) > 1:
            raise OutOfMemory("there is room for one")
        return super().step(batch)


async def test_a_worker_short_of_memory_claims_for_the_places_that_it_has_left(queue: MemoryQueue) -> None:
    jobs = [await submit(queue, make_job(max_tokens=20)) for _ in range(2)]

    async with working(make_worker(queue, step_ms=5, engine=OneAtATime)):
        for job in jobs:  # the second one gets a token after a step of both has failed
            await heard(queue, job, seq=1)
        late = await submit(queue, make_job(max_tokens=1))
        await heard(queue, jobs[1], seq=10)
        (page,) = await queue.read([(late.id, 0)])
        assert page.state is State.QUEUED
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in [*jobs, late]])


async def test_no_more_jobs_are_claimed_than_their_choices_have_places(queue: MemoryQueue) -> None:
    wide = [await submit(queue, make_job(n=3, max_tokens=20)) for _ in range(3)]

    async with working(make_worker(queue, step_ms=10, sequences_max=6)):
        await heard(queue, wide[0], seq=2)
        pages = await queue.read([(job.id, 0) for job in wide])
        assert [page.state for page in pages] == [State.STARTED, State.STARTED, State.QUEUED]
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in wide])


async def test_a_job_that_leaves_while_it_waits_for_a_place_makes_room_for_the_next(queue: MemoryQueue) -> None:
    """The second choice waits for the first one's prompt; both are dropped between two steps."""
    leaving = await submit(queue, make_job(prompt="word " * 400, n=2, max_tokens=20))
    async with working(make_worker(queue, step_ms=50, sequences_max=8)) as worker:
        await heard(queue, leaving, seq=0)
        run: Any = held_job(worker, leaving).run
        await eventually(lambda: run.sequences[0].computed >= 128)  # two steps: no more is claimed by now
        assert await queue.cancel(leaving.id) is State.STARTED
        after = await submit(queue, make_job(max_tokens=1))

        async with asyncio.timeout(ROOM_S / 2):  # it is notified and need not poll
            assert isinstance(await outcome_of(queue, after), Completed)


@pytest.mark.parametrize("later", range(6))
async def test_who_waits_for_room_is_cancelled_also_when_room_comes_just_then(queue: MemoryQueue, later: int) -> None:
    worker = make_worker(queue)
    waiting = asyncio.create_task(worker._held.changed(longest_s=5))
    await asyncio.sleep(0.01)

    worker._held.wake()
    for _ in range(later):
        await asyncio.sleep(0)
    if waiting.cancel():
        await asyncio.wait([waiting])
        assert waiting.cancelled()


async def test_jobs_wider_than_the_batch_keep_no_other_from_its_answer(queue: MemoryQueue) -> None:
    wide = [await submit(queue, make_job(n=64, max_tokens=20)) for _ in range(3)]

    async with working(make_worker(queue, step_ms=5, sequences_max=8)):
        await heard(queue, wide[0], seq=20)
        for _ in range(3):
            chat = await submit(queue, make_job(tenant="another", max_tokens=5))
            assert isinstance(await outcome_of(queue, chat), Completed)
        pages = await queue.read([(job.id, 0) for job in wide])
        assert [page.state for page in pages] == [State.STARTED, State.QUEUED, State.QUEUED]
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in wide])


async def test_a_cancelled_job_writes_nothing_more(queue: MemoryQueue) -> None:
    job = make_job(max_tokens=20)
    await submit(queue, job)

    async with working(make_worker(queue, step_ms=10)):
        await heard(queue, job, seq=3)
        assert await queue.cancel(job.id) is State.STARTED
        cancelled = await log_of(queue, job)

    assert await log_of(queue, job) == cancelled
    assert len(cancelled) < 20


async def test_stopping_hands_over_and_the_next_worker_goes_on(queue: MemoryQueue) -> None:
    job, same = make_job(max_tokens=20), make_job(max_tokens=20)
    await submit(queue, job)
    async with working(make_worker(queue, "first", step_ms=20, drain_s=0)):
        await heard(queue, job, seq=4)
    before = await log_of(queue, job)

    async with working(make_worker(queue, "second")):
        await heard(queue, job)
        await submit(queue, same)
        await heard(queue, same)

    after, undisturbed = await log_of(queue, job), await log_of(queue, same)
    assert isinstance(after[-1], Finished)
    assert after[: len(before)] == before
    assert text_of(after) == text_of(undisturbed)


async def test_stopped_twice_it_does_not_wait_for_the_drain(queue: MemoryQueue) -> None:
    job = make_job(max_tokens=20)
    await submit(queue, job)
    worker = make_worker(queue, step_ms=200, drain_s=60)
    running = asyncio.create_task(worker.run())
    await heard(queue, job, seq=0)

    worker.stop()
    worker.stop()

    await asyncio.wait_for(running, 3)
    (page,) = await queue.read([(job.id, 0)])
    assert page.state is State.STARTED


async def test_a_job_over_its_run_deadline_ends_and_frees_its_slot(queue: MemoryQueue) -> None:
    job = await submit(queue, make_job(run_deadline_ms=50, max_tokens=900))
    after = await submit(queue, make_job(max_tokens=3))
    async with working(make_worker(queue, step_ms=10, sequences_max=1)):
        assert await outcome_of(queue, job) == Expired(deadline=Deadline.RUN)
        assert isinstance(await outcome_of(queue, after), Completed)

    assert len(await log_of(queue, job)) > 1


async def test_the_log_says_what_became_of_a_job_and_that_one_was_taken_over(
    queue: MemoryQueue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.loop.held_jobs")
    job = await submit(queue, make_job(prompt="one two", max_tokens=5, tenant="team-a"))
    clock.now_ms += 250
    assert await queue.claim("m", worker="dead", limit=1)
    clock.now_ms += 10_000

    async with working(make_worker(queue)):
        await outcome_of(queue, job)

    over, ended = ([r for r in caplog.records if r.message == message] for message in ("job taken over", "job ended"))
    assert [(r.job_id, r.attempt, r.events) for r in over] == [(job.id, 2, 0)]  # type: ignore[attr-defined]
    (line,) = [vars(record) for record in ended]
    assert (line["tenant"], line["outcome"], line["attempt"]) == ("team-a", "completed", 2)
    assert (line["prompt_tokens"], line["output_tokens"], line["waited_ms"]) == (3, 5, 10_250)
    assert line["took_ms"] >= 0


async def test_who_is_alone_is_computed_alone_until_it_has_a_token(queue: MemoryQueue, clock: Clock) -> None:
    class Watching(ScriptedEngine):
        batches: ClassVar[list[list[str]]] = []

        def step(self, batch: Batch) -> list[Sampled]:
            self.batches.append([row.sequence.job_id for row in batch.rows])
            return super().step(batch)

    suspect = await submit(queue, make_job(max_tokens=100))
    for worker in "ab":
        assert await queue.claim("m", worker=worker, limit=1)
        clock.now_ms += 10_000
    innocent = await submit(queue, make_job(max_tokens=100))
    async with working(make_worker(queue, step_ms=2, engine=Watching)):
        for job in (suspect, innocent):
            assert isinstance(await outcome_of(queue, job), Completed)

    first = next(batch for batch in Watching.batches if suspect.id in batch)
    assert first == [suspect.id]
    assert any({suspect.id, innocent.id} == set(batch) for batch in Watching.batches)


async def test_what_has_not_happened_yet_is_counted_as_zero(queue: MemoryQueue) -> None:
    """Prometheus sees no increase in a counter that appears with its first event."""
    metrics = WorkerMetrics()
    make_worker(queue, metrics=metrics)
    of_model = {"model": INFO.name}

    for found in ("cancelled", "renewal", "write", "claim"):
        assert metrics.registry.get_sample_value("penstock_lost_deliveries_total", of_model | {"found": found}) == 0
    for outcome in ("completed", "failed", "cancelled", "expired"):
        assert metrics.registry.get_sample_value("penstock_jobs_total", of_model | {"outcome": outcome}) == 0
    for counter in ("redelivered_jobs", "fenced_writes", "wasted_tokens"):
        assert metrics.registry.get_sample_value(f"penstock_{counter}_total", of_model) == 0


async def test_a_worker_that_gets_its_own_job_again_goes_on_as_anybody_would(queue: MemoryQueue) -> None:
    """Redis lost its heartbeats and the end of the log; later it loses more."""
    undisturbed = await submit(queue, make_job(max_tokens=15))
    job = make_job(max_tokens=15)
    async with working(make_worker(queue, step_ms=10, heartbeat_ms=10_000, lease_ms=20_000)):
        await outcome_of(queue, undisturbed)
        await submit(queue, job)
        await heard(queue, job, seq=6)
        record = queue._records[job.id]
        first = record.claim_token
        del record.log[4:]
        record.lease_ms = float("-inf")
        async for _ in queue.listen(job.id):
            if record.claim_token != first and len(record.log) >= 7:
                break
        del record.log[5:]
        assert isinstance(await outcome_of(queue, job), Completed)

    assert record.claim_token == ""
    log = await log_of(queue, job)
    assert [event.seq for event in log] == list(range(len(log)))
    assert text_of(log) == text_of(await log_of(queue, undisturbed))


def sleeping_worker(queue: MemoryQueue, rests: list[bool], **more: Any) -> Worker:
    async def tell(asleep: bool) -> None:
        rests.append(asleep)

    return make_worker(queue, loop=SleepingLoop, tell_rest=tell, **more)


async def test_a_worker_that_is_told_to_sleep_at_once_hands_its_jobs_back_and_goes_on_with_them_awake(
    queue: MemoryQueue,
) -> None:
    rests: list[bool] = []
    job = await submit(queue, make_job(max_tokens=20))
    async with working(sleeping_worker(queue, rests, step_ms=60)) as worker:
        await heard(queue, job, seq=2)
        tell_worker(queue, SLEEP_NOW)
        await eventually(lambda: rests == [True])
        assert not isinstance((await log_of(queue, job))[-1], Finished)
        assert not worker.accepting
        other = await submit(queue, make_job())
        tell_worker(queue, SLEEP_NOW)  # again is harmless
        tell_worker(queue, WAKE)

        assert isinstance(await outcome_of(queue, other), Completed)
        assert isinstance(await outcome_of(queue, job), Completed)
        assert rests[-1] is False
        assert worker.accepting


async def test_a_worker_that_is_told_to_sleep_ends_its_jobs_first_and_stops_while_it_sleeps(queue: MemoryQueue) -> None:
    rests: list[bool] = []
    job = await submit(queue, make_job(max_tokens=10))
    async with working(sleeping_worker(queue, rests, step_ms=10)):
        await heard(queue, job, seq=1)
        tell_worker(queue, SLEEP)
        assert isinstance(await outcome_of(queue, job), Completed)
        await eventually(lambda: rests == [True])


async def test_a_worker_that_is_woken_before_it_could_hand_its_jobs_back_goes_on_with_them(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()

    async def release(*_: Any, **__: Any) -> None:
        tried.set()
        raise QueueUnavailable("Redis does not serve")

    job = await submit(queue, make_job(max_tokens=20))
    async with working(sleeping_worker(queue, [], step_ms=20)):
        await heard(queue, job, seq=1)
        with monkeypatch.context() as patch:
            patch.setattr(queue, "release", release)
            tell_worker(queue, SLEEP_NOW)
            await asyncio.wait_for(tried.wait(), 5)
            tell_worker(queue, WAKE)
            assert isinstance(await outcome_of(queue, job), Completed)
            assert isinstance(await outcome_of(queue, await submit(queue, make_job())), Completed)


async def test_a_worker_whose_models_cannot_sleep_is_told_in_vain(queue: MemoryQueue) -> None:
    async with working(make_worker(queue)) as worker:
        tell_worker(queue, SLEEP_NOW)
        assert isinstance(await outcome_of(queue, await submit(queue, make_job())), Completed)
        assert worker.accepting
