"""From an accepted job to the client's answer: enqueue it, or find the one that the same request made before, relay
what happens to it, and let go of it when the client leaves. The same for every kind of job."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from opentelemetry.trace import SpanKind

from api.auth import limit_headers
from api.formats.common import Answer, Chunks
from api.house import House
from api.problems import Refused, problem_of_outcome
from api.relay import JobStream
from api.sse import EventStream, StreamBroken, error_frame
from api.terms import Terms
from api.work import Work
from shared.errors import QueueUnavailable, Stopping
from shared.events import Completed, Delta, Event, Finished, Started, Usage
from shared.job import Job
from shared.queue import Bounds
from shared.settings import Settings
from shared.tasks import first_of
from shared.tracing import TRACER, to_carry

CLIENT_LEFT = 499  # nobody reads it; the access counts do


async def respond(house: House, work: Work, terms: Terms, request: Request, *, streamed: bool) -> Response:
    """Submit the work, and answer with all that becomes of it."""
    return await (stream(house, work, terms) if streamed else whole(house, work, terms, request))


async def whole(house: House, work: Work, terms: Terms, request: Request) -> Response:
    with ExitStack() as opened:
        job, events, headers = await enter(house, work, terms, opened)
        try:
            body = await first_of(collect(house, events, work.formatter.whole(job)), _left(request))
        except Stopping:
            if not terms.idempotency:  # nobody can ask for it again, nor has been told its name
                await house.queue.leave(job.id, subscriber=house.relay.name)
            raise
        if body is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(orjson.dumps(body), media_type="application/json", headers=headers)


async def stream(house: House, work: Work, terms: Terms) -> Response:
    with ExitStack() as opened:
        job, events, headers = await enter(house, work, terms, opened)
        early = await _early(house, events)
        chunks = work.formatter.stream(job, ids=terms.event_ids)
        blocks = _blocks(house, events, early, chunks, terms.began)
        return EventStream(blocks, house.settings, opened=opened.pop_all(), headers=headers)


async def submit(house: House, work: Work, terms: Terms) -> tuple[Job, dict[str, str]]:
    """Enqueue it for nobody to wait for; the job that does it, and what the client is told of it."""
    with ExitStack() as opened:
        job, _, headers = await enter(house, work, terms, opened)
        return job, headers


async def pick_up(house: House, job: Job, chunks: Chunks) -> Response:
    """The frames of a job that is there already. `job`: as much of it as the relay needs."""
    with ExitStack() as opened:
        events = opened.enter_context(house.relay.open(job))
        await house.queue.attach(job.id, subscriber=house.relay.name)
        house.relay.accept(events, logged=True)
        blocks = _blocks(house, events, [], chunks, time.monotonic())
        return EventStream(blocks, house.settings, opened=opened.pop_all(), headers={"x-penstock-job-id": job.id})


async def enter(house: House, work: Work, terms: Terms, opened: ExitStack) -> tuple[Job, JobStream, dict[str, str]]:
    """The job that answers the request, its events, and what the client is told of it."""
    job = work.job
    bounds = _bounds(house.settings)
    house.pressure.check((await house.places.of_model(job.model)).client)
    stream = opened.enter_context(house.relay.open(job))
    try:
        with TRACER.start_as_current_span(f"send {job.model}", kind=SpanKind.PRODUCER) as span:
            span.set_attributes({"messaging.destination.name": job.model, "messaging.message.id": job.id})
            accepted = await house.queue.enqueue(
                job,
                bounds=bounds,
                subscriber=house.relay.name,
                idempotency=terms.idempotency,
                allowance=house.gate.allowance(terms.caller, paced=terms.paced),
                view=work.view.encode(),
                trace=to_carry(),
                record=work.record,
            )
    except QueueUnavailable:
        house.metrics.redis_errors.inc()
        house.relay.accept(stream)  # perhaps only the answer is lost, not the job: leaving it takes it back
        stream.grace_s = 0
        if work.record:
            with suppress(QueueUnavailable):
                await house.queue.discard(work.record)
        raise
    if accepted.attached:
        job = replace(job, id=accepted.job_id, created_ms=accepted.created_ms)
        stream = opened.enter_context(house.relay.open(job))
    house.relay.accept(stream, logged=accepted.attached)
    headers = {"x-penstock-job-id": job.id, "x-penstock-queue-position": str(accepted.ahead + 1)}
    return job, stream, headers | limit_headers(terms.caller.key, accepted.left)


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        jobs_max=settings.queue_jobs_max, tokens_max=settings.queue_tokens_max, bytes_max=settings.queue_bytes_max
    )


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
    house: House, stream: JobStream, early: list[Event], chunks: Chunks, began: float
) -> AsyncIterator[bytes]:
    """The body of a stream."""
    seen = began
    first_seen, next_seen = (
        each.labels(stream.model) for each in (house.metrics.first_token, house.metrics.between_tokens)
    )
    observe = first_seen.observe
    try:
        if block := chunks.opening():
            yield block
        events = early or await house.relay.take(stream)
        while True:
            if any(isinstance(event, Delta) and event.text for event in events):
                seen, before = time.monotonic(), seen
                observe(seen - before)
                observe = next_seen.observe
            if block := b"".join(frame for event in events for frame in chunks.frames(event)):
                yield block
            if isinstance(events[-1], Finished):
                break
            events = await house.relay.take(stream)
    except Stopping:
        raise StreamBroken from None  # it is picked up elsewhere
    if (problem := problem_of_outcome(events[-1].outcome)) and not chunks.tells_failure:
        yield error_frame(problem)
        raise StreamBroken


async def collect(house: House, stream: JobStream, answer: Answer) -> dict[str, Any]:
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


async def _left(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
