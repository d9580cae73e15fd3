"""From an accepted job to the client's answer: enqueue it, relay what happens to it, and cancel it when the client
leaves. The same for every kind of job."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import orjson
from fastapi import Request
from fastapi.responses import Response

from api.house import House
from api.problems import Refused, problem_of_outcome
from api.relay import JobStream
from api.sse import EventStream, StreamBroken, error_frame
from shared.errors import QueueUnavailable
from shared.events import Completed, Delta, Event, Finished, Started, Usage
from shared.job import Job
from shared.tasks import end

CLIENT_LEFT = 499  # nobody reads it; the access counts do


class Answer(Protocol):
    """What a whole answer is collected in."""

    def add(self, event: Event) -> None: ...

    def body(self, usage: Usage) -> dict[str, Any]: ...


class Chunks(Protocol):
    """What turns events into the frames of a stream."""

    def block(self, events: Iterable[Event]) -> bytes: ...


async def whole(house: House, job: Job, answer: Answer, request: Request) -> Response:
    with house.relay.open(job.id) as opened:
        await _enqueue(house, job, opened)
        body = await _until_left(request, _collect(house, opened, answer))
        if body is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(orjson.dumps(body), media_type="application/json")


async def stream(house: House, job: Job, chunks: Chunks, began: float) -> Response:
    """`began`: when the request came, by the monotonic clock."""
    with ExitStack() as opened:
        events = opened.enter_context(house.relay.open(job.id))
        await _enqueue(house, job, events)
        first = await _early(house, events)
        blocks = _blocks(house, events, first, chunks, began)
        return EventStream(blocks, keep_alive_s=house.settings.keep_alive_s, opened=opened.pop_all())


async def _enqueue(house: House, job: Job, stream: JobStream) -> None:
    try:
        await house.queue.enqueue(job, subscriber=house.relay.name, jobs_max=house.settings.queue_jobs_max)
    except QueueUnavailable:
        house.relay.accept(stream, patience_ms=job.patience_ms)  # perhaps only the answer is lost, not the job
        raise
    house.relay.accept(stream, patience_ms=job.patience_ms)


async def _early(house: House, stream: JobStream) -> list[Event]:
    """Wait a moment for the first token, so that an early failure is still an HTTP status."""
    early: list[Event] = []
    try:
        async with asyncio.timeout(house.settings.first_event_ms / 1000):
            while all(isinstance(event, Started) for event in early):
                early += await house.relay.take(stream)
    except TimeoutError:
        return early
    _raise_failure(early)
    return early


async def _blocks(
    house: House, stream: JobStream, first: list[Event], chunks: Chunks, began: float
) -> AsyncIterator[bytes]:
    """The body of a stream."""
    told = False
    events = first or await house.relay.take(stream)
    while True:
        if not told and any(isinstance(event, Delta) and event.text for event in events):
            house.metrics.first_token.observe(time.monotonic() - began)
            told = True
        if block := chunks.block(events):
            yield block
        if isinstance(events[-1], Finished):
            break
        events = await house.relay.take(stream)
    if problem := problem_of_outcome(events[-1].outcome):
        yield error_frame(problem)
        raise StreamBroken


async def _collect(house: House, stream: JobStream, answer: Answer) -> dict[str, Any]:
    while True:
        events = await house.relay.take(stream)
        for event in events:
            answer.add(event)
        if usage := _raise_failure(events):
            return answer.body(usage)


def _raise_failure(events: Sequence[Event]) -> Usage | None:
    """The usage when these events complete the job; raise Refused when they end it otherwise."""
    last = events[-1]
    if not isinstance(last, Finished):
        return None
    if problem := problem_of_outcome(last.outcome):
        raise Refused(problem)
    assert isinstance(last.outcome, Completed)
    return last.outcome.usage


async def _until_left(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any] | None:
    """The result of `work`; None, and its cancellation, when the client closes the connection first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end((working, leaving))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
