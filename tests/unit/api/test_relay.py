"""A stream of events is in order, without a gap or a repeat, whatever pub/sub does."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from api.formats.chat import ChatFormatter
from api.http.sse import DONE
from api.serving.relay import JobStream, Relay
from api.serving.respond import _body
from shared.domain.codec import decode_event
from shared.domain.events import Cancelled, Event, Expired, Failed, Finished
from shared.domain.lifecycle import State
from shared.observability.metrics import ApiMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds, LogSlice
from tests.factories import delta, done, make_job, started, write

EVENTS: list[Event] = [started(), *[delta(n) for n in range(1, 20)], done(20)]


def stream(buffer_max: int = 100) -> JobStream:
    return JobStream(make_job(), buffer_max=buffer_max, now=0)


def page(events: Sequence[Event] = (), state: State | None = State.STARTED) -> LogSlice:
    return LogSlice(state=state, events=tuple(events))


@pytest.mark.parametrize("seed", range(20))
def test_any_loss_and_repeat_comes_out_whole(seed: int) -> None:
    rng = random.Random(seed)
    opened, read = stream(buffer_max=rng.choice([3, 100])), []
    position = 0
    while position < len(EVENTS):
        size = rng.randint(1, 4)
        heard = EVENTS[max(0, position - rng.randint(0, 2)) : position + size]
        position += size
        if rng.random() < 0.7:
            opened.hear(heard, 0)
        read += opened.ready()
        if opened.behind:
            opened.fill(page(EVENTS[opened.next_seq : position]), 0)
    while not opened.ended or opened._pending:
        read += opened.ready()
        opened.fill(page(EVENTS[opened.next_seq :], State.FINISHED), 0)

    assert read == EVENTS


def test_a_slow_reader_holds_a_bounded_number_of_events() -> None:
    opened = stream(buffer_max=5)

    opened.hear(EVENTS, 0)

    assert len(opened.ready()) == 5
    assert opened.behind
    opened.fill(page(EVENTS[5:8]), 0)
    assert opened.ready() == EVENTS[5:8]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(State.CANCELED, Cancelled), (State.FAILED, Failed), (State.FINISHED, Failed), (None, Failed)],
)
def test_a_job_that_ended_without_its_last_event_still_ends(state: State | None, outcome: type) -> None:
    opened = stream()
    opened.hear(EVENTS[:3], 0)

    opened.fill(page(state=state), 0)

    (*_, last) = opened.ready()
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, outcome)
    assert last.seq == 3


def test_nothing_follows_the_last_event() -> None:
    opened = stream()
    opened.hear(EVENTS, 0)
    opened.ready()

    opened.fill(page(state=State.FINISHED), 0)

    assert opened.ready() == []


def test_an_answer_that_was_made_again_otherwise_ends_with_an_error() -> None:
    opened = stream()
    opened.hear(EVENTS[:5], 0)
    opened.ready()

    opened.hear([delta(3), delta(4, "other"), delta(5)], 0)

    (last,) = opened.ready()
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Failed)
    assert last.outcome.code == "job_lost"


def test_an_event_of_strange_data_is_passed_on() -> None:
    strange = decode_event(1, b'["d",0,"x",[[1]],null,[],"",[[[],"","",""]]]')
    opened = stream()

    for _ in range(2):
        opened.hear([started(), strange], 0)

    assert opened.ready() == [started(), strange]


@pytest.fixture
async def relay_and_queue() -> AsyncIterator[tuple[Relay, MemoryQueue]]:
    queue = MemoryQueue(lambda: 0)
    relay = Relay("api", queue=queue, channel=queue, silence_ms=60, buffer_max=10, metrics=ApiMetrics())
    running = asyncio.create_task(relay.run())
    yield relay, queue
    await relay.close()
    await asyncio.wait([running])


@pytest.mark.parametrize("steps", range(6))
async def test_a_relay_ends_that_is_cancelled_just_as_a_client_leaves(steps: int) -> None:
    queue = MemoryQueue(lambda: 0)
    relay = Relay("api", queue=queue, channel=queue, silence_ms=60_000, buffer_max=10, metrics=ApiMetrics())
    running = asyncio.create_task(relay.run())

    async def leave_and_step(steps: int) -> None:
        with relay.open(make_job(grace_ms=60_000)) as opened:
            relay.mark_enqueued(opened)
        for _ in range(steps):  # steps of the event loop
            await asyncio.sleep(0)

    await leave_and_step(20)  # the relay waits for the end of this grace
    await leave_and_step(steps)
    running.cancel()
    await asyncio.wait([running], timeout=5)

    ended = running.cancelled()
    await relay.close()
    assert ended


async def test_a_silent_stream_is_filled_from_its_log(relay_and_queue: tuple[Relay, MemoryQueue]) -> None:
    relay, queue = relay_and_queue
    job = make_job()
    with relay.open(job) as opened:
        await queue.enqueue(job, subscriber="", bounds=Bounds(jobs_max=1))  # no event is published to this relay
        relay.mark_enqueued(opened)
        (delivery,) = await queue.claim("m", worker="w", limit=1)
        await queue.append([write(delivery, *EVENTS[:4])])

        assert await asyncio.wait_for(relay.next_events(opened), 3) == EVENTS[:4]


async def test_a_job_that_no_worker_ever_takes_expires(relay_and_queue: tuple[Relay, MemoryQueue]) -> None:
    relay, queue = relay_and_queue
    job = make_job(queue_deadline_ms=-2000)
    with relay.open(job) as opened:
        await queue.enqueue(job, subscriber="api", bounds=Bounds(jobs_max=1))
        relay.mark_enqueued(opened)

        assert await asyncio.wait_for(relay.next_events(opened), 3) == [Finished(seq=0, outcome=Expired())]
    await relay.close()

    (found,) = await queue.read([(job.id, 0)])
    assert found.state is State.CANCELED


async def test_leaving_early_cancels_and_leaving_at_the_end_does_not(
    relay_and_queue: tuple[Relay, MemoryQueue],
) -> None:
    relay, queue = relay_and_queue
    left, ended = make_job(), make_job()
    for job in (left, ended):
        with relay.open(job) as opened:
            await queue.enqueue(job, subscriber="api", bounds=Bounds(jobs_max=9))
            relay.mark_enqueued(opened)
            (delivery,) = await queue.claim("m", worker="w", limit=1)
            if job is ended:
                await queue.settle(write(delivery, *EVENTS), worker="w")
                while not opened.ended:
                    await asyncio.wait_for(relay.next_events(opened), 3)
    await relay.close()

    states = [found.state for found in await queue.read([(left.id, 0), (ended.id, 0)])]
    assert states == [State.CANCELED, State.FINISHED]


async def test_a_job_outlives_its_last_reader_by_its_grace_only(relay_and_queue: tuple[Relay, MemoryQueue]) -> None:
    relay, queue = relay_and_queue
    jobs = {grace_ms: make_job(grace_ms=grace_ms) for grace_ms in (0, 60_000, None)}
    for job in jobs.values():
        with relay.open(job) as opened:
            await queue.enqueue(job, subscriber="api", bounds=Bounds(jobs_max=9))
            relay.mark_enqueued(opened)
    back = make_job(grace_ms=100)
    with relay.open(back) as opened:
        await queue.enqueue(back, subscriber="api", bounds=Bounds(jobs_max=9))
        relay.mark_enqueued(opened)
    with relay.open(back) as again:
        relay.mark_enqueued(again, logged=True)
        await asyncio.sleep(0.2)
        states = {job.id: found.state for job in (*jobs.values(), back) for found in await queue.read([(job.id, 0)])}

    assert states[jobs[0].id] is State.CANCELED
    assert states[jobs[60_000].id] is states[jobs[None].id] is states[back.id] is State.QUEUED


async def test_a_place_that_is_told_too_late_is_left_out(relay_and_queue: tuple[Relay, MemoryQueue]) -> None:
    relay, _ = relay_and_queue
    job = make_job()
    services: Any = SimpleNamespace(relay=relay, metrics=ApiMetrics())
    with relay.open(job) as opened:
        blocks = _body(services, opened, [], ChatFormatter(n=1).stream(job, ids=False), began=0)
        reading = asyncio.ensure_future(anext(blocks))
        await asyncio.sleep(0)
        opened.tell("position 2")
        opened.hear(EVENTS[:3], 0)

        assert await reading == b": position 2\n"
        opened.tell("position 1")  # by a look at the queue that began before the events came
        assert (await anext(blocks)).startswith(b"data: ")
        reading = asyncio.ensure_future(anext(blocks))
        await asyncio.sleep(0)
        opened.hear([done(3)], 0)
        assert (await reading).endswith(DONE)
