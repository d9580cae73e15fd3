"""A worker on the queue in memory refuses, resumes and hands over jobs."""

import asyncio
from typing import Any, ClassVar

import pytest

from shared.domain.errors import QueueUnavailable
from shared.domain.events import Completed, Deadline, Expired, Failed, Finished
from shared.domain.lifecycle import State
from shared.observability.metrics import WorkerMetrics
from shared.queue.memory_queue import MemoryQueue
from tests.factories import make_job
from tests.running_workers import (
    INFO,
    Clock,
    eventually,
    heard,
    log_of,
    make_worker,
    outcome_of,
    submit,
    text_of,
    working,
)
from workers.engines.base import OutOfMemory
from workers.engines.scripted import ScriptedEngine
from workers.loop.worker import ROOM_S
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled
from workers.text.tokenizer import Chat

INFO = ModelInfo(name="m", engine="scripted", context_length=1000, created_s=0)


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> MemoryQueue:
    return MemoryQueue(clock)


async def _announce() -> None:
    pass


def make_worker(
    queue: MemoryQueue,
    name: str = "w",
    *,
    step_ms: float = 0,
    sequences_max: int = 4,
    blocks: int = 0,
    engine: type[ScriptedEngine] = ScriptedEngine,
    metrics: WorkerMetrics | None = None,
    announce: Callable[[], Awaitable[None]] = _announce,
    **settings: Any,
) -> Worker:
    limits = EngineLimits(
        sequences_max=sequences_max, batch_tokens_max=64, context_length=1000, vocabulary=50_000, blocks=blocks
    )
    given = {"heartbeat_ms": 100, "idle_wait_ms": 10, "drain_s": 5} | settings
    return Worker(
        name,
        [Loaded([INFO], engine(limits=limits, step_ms=step_ms, tokens=20), SingleThread("engine"))],
        queue=queue,
        channel=queue,
        announce=announce,
        settings=load_settings(**given),
        metrics=metrics or WorkerMetrics(),
    )


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[Worker]:
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 10)


async def submit(queue: MemoryQueue, job: Job) -> Job:
    """Enqueue a job so that its events can be awaited."""
    await queue.enqueue(job, subscriber=job.id, bounds=Bounds(jobs_max=100))
    return job


async def heard(queue: MemoryQueue, job: Job, *, seq: int | None = None) -> None:
    """Wait until the job has written its event `seq`, or its last one."""
    async for batch in queue.listen(job.id):
        last = batch[-1][1][-1]
        if isinstance(last, Finished) or (seq is not None and last.seq >= seq):
            return


async def eventually(truth: Callable[[], Any]) -> None:
    """Poll for a condition that no event announces."""
    async with asyncio.timeout(10):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def log_of(queue: MemoryQueue, job: Job) -> list[Event]:
    (page,) = await queue.read([(job.id, 0)])
    return list(page.events)


async def outcome_of(queue: MemoryQueue, job: Job) -> Outcome:
    await heard(queue, job)
    last = (await log_of(queue, job))[-1]
    assert isinstance(last, Finished)
    return last.outcome


def text_of(log: list[Event]) -> str:
    return "".join(event.text for event in log if isinstance(event, Delta))


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
        run: Any = worker._held[leaving.id].run
        await eventually(lambda: run.sequences[0].computed >= 128)  # two steps: no more is claimed by now
        assert await queue.cancel(leaving.id) is State.STARTED
        after = await submit(queue, make_job(max_tokens=1))

        async with asyncio.timeout(ROOM_S / 2):  # it is woken: it need not look again by itself
            assert isinstance(await outcome_of(queue, after), Completed)


@pytest.mark.parametrize("later", range(6))
async def test_who_waits_for_room_is_cancelled_also_when_room_comes_just_then(queue: MemoryQueue, later: int) -> None:
    worker = make_worker(queue)
    waiting = asyncio.create_task(worker._until_room(5))
    await asyncio.sleep(0.01)

    worker._room.set()
    for _ in range(later):
        await asyncio.sleep(0)
    if waiting.cancel():
        await asyncio.wait([waiting])
        assert waiting.cancelled()


class Unreadable(ScriptedEngine):
    """An engine whose prompts can ask that reading their third token raises; the step itself succeeds."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.tokenizer = UnreadableTokenizer()


class UnreadableTokenizer(ScriptedTokenizer):
    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        chat = super().chat(request, wanted)
        return replace(
            chat, make_parser=lambda seed: BadReply() if "bad" in request["messages"][0]["content"] else PlainParser()
        )


class BadReply(PlainParser):
    read = 0

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        self.read += 1
        if self.read == 3:
            raise RecursionError("nested too deep")
        return super().push(text, reason)


async def test_an_answer_that_cannot_be_read_fails_its_own_job_and_no_other(queue: MemoryQueue) -> None:
    undisturbed = await submit(queue, make_job(prompt="good", max_tokens=12))
    bad = await submit(queue, make_job(prompt="bad", n=2, max_tokens=12))
    beside = await submit(queue, make_job(prompt="good", max_tokens=12))

    async with working(make_worker(queue, step_ms=5, engine=Unreadable)) as worker:
        outcome = await outcome_of(queue, bad)
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in (undisturbed, beside)])
        assert worker.alive

    assert isinstance(outcome, Failed)
    assert (outcome.code, "nested too deep" in outcome.message) == ("engine_error", True)
    assert sum(isinstance(event, Finished) for event in await log_of(queue, bad)) == 1
    assert text_of(await log_of(queue, beside)) == text_of(await log_of(queue, undisturbed))


async def test_an_answer_that_cannot_be_read_behind_its_echo_fails_all_the_same(queue: MemoryQueue) -> None:
    """The echo has a number then, but is not written."""

    class BadFirst(ScriptedTokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            if len(ids) == 1:
                raise ValueError("no such token")
            return super().decode(ids)

    class Engine(ScriptedEngine):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.tokenizer = BadFirst()

    asked = {"prompts": ["a b"], "echo": True, "prompt_logprobs": 1}
    bad = await submit(queue, make_job(completion=asked, logprobs=1, max_tokens=3))

    async with working(make_worker(queue, engine=Engine)):
        outcome = await outcome_of(queue, bad)

    assert isinstance(outcome, Failed)
    assert [event.seq for event in await log_of(queue, bad)] == [0, 1]


async def test_a_log_with_a_gap_that_nobody_can_fill_ends_its_job(queue: MemoryQueue) -> None:
    job, other = await submit(queue, make_job(max_tokens=15)), make_job(max_tokens=3)
    async with working(make_worker(queue, step_ms=10)) as worker:
        await heard(queue, job, seq=6)
        worker._held[job.id].log.clear()
        del queue._records[job.id].log[3:]
        outcome = await outcome_of(queue, job)
        await submit(queue, other)
        assert isinstance(await outcome_of(queue, other), Completed)

    assert isinstance(outcome, Failed)
    assert outcome.code == "internal_error"
    log = await log_of(queue, job)
    assert [event.seq for event in log] == [0, 1, 2, 3]


async def test_an_answer_that_takes_for_ever_to_read_fails_its_own_job(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*_: Any) -> ParsedDelta:
        while True:
            pass

    monkeypatch.setattr("workers.runs.run.READ_S_MAX", 0.2)
    monkeypatch.setattr(BadReply, "push", forever)
    bad = await submit(queue, make_job(prompt="bad", max_tokens=12))
    beside = await submit(queue, make_job(prompt="good", max_tokens=12))

    async with working(make_worker(queue, engine=Unreadable)):
        assert isinstance(await outcome_of(queue, bad), Failed)
        assert isinstance(await outcome_of(queue, beside), Completed)


async def test_a_job_that_fails_while_its_deadline_passes_ends_once(queue: MemoryQueue) -> None:
    """No write succeeds meanwhile, so that both ends would be under way together."""
    answers = asyncio.Event()
    append, settle = queue.append, queue.settle

    class Away(MemoryQueue):
        async def append(self, writes: Any) -> Any:
            await answers.wait()
            return await append(writes)

        async def settle(self, write: Any, *, worker: str) -> Any:
            await answers.wait()
            return await settle(write, worker=worker)

    queue.__class__ = Away
    job = await submit(queue, make_job(prompt="fault:raise@2", run_ms=300, max_tokens=50))
    async with working(make_worker(queue, step_ms=30)) as worker:
        await eventually(lambda: job.id in worker._held and worker._held[job.id]._deadline)
        timer, (engine_loop,) = worker._held[job.id]._deadline, worker._engine_loops
        assert timer
        await eventually(lambda: timer.when() < asyncio.get_running_loop().time())
        passed = threading.Event()
        engine_loop._inbox.put(passed.set)
        await asyncio.to_thread(passed.wait)  # in the engine's thread, too
        answers.set()
        assert isinstance(await outcome_of(queue, job), Failed)

    assert sum(isinstance(event, Finished) for event in await log_of(queue, job)) == 1


async def test_nobody_waits_for_the_prompt_of_another_to_be_encoded(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = threading.Event()
    encode = ScriptedTokenizer.encode_text

    def slow(self: ScriptedTokenizer, text: str, *given: Any, **options: Any) -> list[int]:
        if "slow" in text:
            encoded.wait(20)
        return encode(self, text, *given, **options)

    monkeypatch.setattr(ScriptedTokenizer, "encode_text", slow)
    first = await submit(queue, make_job(prompt="slow", max_tokens=3))
    others = [await submit(queue, make_job(max_tokens=3)) for _ in range(3)]

    async with working(make_worker(queue)):
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in others])
        encoded.set()
        assert isinstance(await outcome_of(queue, first), Completed)


async def test_a_prompt_that_takes_too_long_to_encode_is_refused(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*_: Any, **__: Any) -> list[int]:
        while True:
            pass

    monkeypatch.setattr("workers.loop.worker.ENCODE_S_MAX", 0.2)
    monkeypatch.setattr(ScriptedTokenizer, "encode_text", forever)
    job = await submit(queue, make_job())

    async with working(make_worker(queue)):
        outcome = await outcome_of(queue, job)

    assert isinstance(outcome, Failed)
    assert (outcome.code, "0.2 s to encode" in outcome.message) == ("invalid_request", True)


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
    caplog.set_level("INFO", "workers.loop.worker")
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
