"""Answers a request by a job: enqueue it, or find the one that the same request created before, relay its events, and
leave it when the client leaves. All kinds of jobs are answered alike."""

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

from api.formats.common import AnswerCollector, StreamFormatter
from api.http.auth import limit_headers
from api.http.problems import Refused, problem_of_outcome
from api.http.request_options import RequestOptions
from api.http.sse import EventStream, StreamBroken, error_frame
from api.serving.relay import JobStream
from api.serving.services import Services
from api.serving.submission import Submission
from shared.domain.errors import QueueUnavailable, Stopping
from shared.domain.events import Completed, Delta, Event, Finished, Started, Usage
from shared.domain.job import Job
from shared.observability.tracing import TRACER, to_carry
from shared.process.tasks import first_of
from shared.queue.protocols import Bounds
from shared.settings import Settings

CLIENT_LEFT = 499  # no client reads this status; logs and metrics count it


async def respond(
    services: Services, submission: Submission, options: RequestOptions, request: Request, *, streamed: bool
) -> Response:
    """Submit the job, and answer with its result, streamed or complete."""
    return await (
        respond_stream(services, submission, options)
        if streamed
        else respond_whole(services, submission, options, request)
    )


async def respond_whole(
    services: Services, submission: Submission, options: RequestOptions, request: Request
) -> Response:
    with ExitStack() as opened:
        job, events, headers = await enqueue_and_open(services, submission, options, opened)
        try:
            body = await first_of(collect(services, events, submission.formatter.whole(job)), _left(request))
        except Stopping:
            if not options.idempotency:  # the client cannot find the job: it never got its id
                await services.queue.leave(job.id, subscriber=services.relay.name)
            raise
        if body is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(orjson.dumps(body), media_type="application/json", headers=headers)


async def respond_stream(services: Services, submission: Submission, options: RequestOptions) -> Response:
    with ExitStack() as opened:
        job, events, headers = await enqueue_and_open(services, submission, options, opened)
        early = await _early(services, events)
        formatter = submission.formatter.stream(job, ids=options.event_ids)
        blocks = _blocks(services, events, early, formatter, options.began)
        return EventStream(blocks, services.settings, opened=opened.pop_all(), headers=headers)


async def submit(services: Services, submission: Submission, options: RequestOptions) -> tuple[Job, dict[str, str]]:
    """Enqueue without waiting; return the job and the response headers."""
    with ExitStack() as opened:
        job, _, headers = await enqueue_and_open(services, submission, options, opened)
        return job, headers


async def resume_stream(services: Services, job: Job, formatter: StreamFormatter) -> Response:
    """Stream the frames of an existing job. `job` has the fields that the relay needs."""
    with ExitStack() as opened:
        events = opened.enter_context(services.relay.open(job))
        await services.queue.attach(job.id, subscriber=services.relay.name)
        services.relay.accept(events, logged=True)
        blocks = _blocks(services, events, [], formatter, time.monotonic())
        return EventStream(blocks, services.settings, opened=opened.pop_all(), headers={"x-penstock-job-id": job.id})


async def enqueue_and_open(
    services: Services, submission: Submission, options: RequestOptions, opened: ExitStack
) -> tuple[Job, JobStream, dict[str, str]]:
    """Enqueue the job and open its stream; return the job that answers the request, its events, and the response
    headers."""
    job = submission.job
    bounds = _bounds(services.settings)
    services.redis_monitor.check((await services.shard_map.of_model(job.model)).client)
    stream = opened.enter_context(services.relay.open(job))
    try:
        with TRACER.start_as_current_span(f"send {job.model}", kind=SpanKind.PRODUCER) as span:
            span.set_attributes({"messaging.destination.name": job.model, "messaging.message.id": job.id})
            accepted = await services.queue.enqueue(
                job,
                bounds=bounds,
                subscriber=services.relay.name,
                idempotency=options.idempotency,
                rate_limits=services.authenticator.rate_limits(options.caller, paced=options.paced),
                render_options=submission.render_options.encode(),
                trace=to_carry(),
                record=submission.record,
            )
    except QueueUnavailable:
        services.metrics.redis_errors.inc()
        # The job may be enqueued although its answer was lost; accepting the stream makes its closing cancel the job.
        services.relay.accept(stream)
        stream.grace_s = 0
        if submission.record:
            with suppress(QueueUnavailable):
                await services.queue.discard(submission.record)
        raise
    if accepted.attached:
        job = replace(job, id=accepted.job_id, created_ms=accepted.created_ms)
        stream = opened.enter_context(services.relay.open(job))
    services.relay.accept(stream, logged=accepted.attached)
    headers = {"x-penstock-job-id": job.id, "x-penstock-queue-position": str(accepted.ahead + 1)}
    return job, stream, headers | limit_headers(options.caller.key, accepted.limits_left)


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        jobs_max=settings.queue_jobs_max, tokens_max=settings.queue_tokens_max, bytes_max=settings.queue_bytes_max
    )


async def _early(services: Services, stream: JobStream) -> list[Event]:
    """Wait a moment for the first token, so that an early failure is still an HTTP status."""
    early: list[Event] = []
    try:
        async with asyncio.timeout(services.settings.first_event_ms / 1000):
            while all(isinstance(event, Started) for event in early):
                early += await services.relay.take(stream)
    except TimeoutError:
        return early
    _raise_failure(early)
    return early


async def _blocks(
    services: Services, stream: JobStream, early: list[Event], formatter: StreamFormatter, began: float
) -> AsyncIterator[bytes]:
    """Yield the body of a stream."""
    seen = began
    first_seen, next_seen = (
        each.labels(stream.model) for each in (services.metrics.first_token, services.metrics.between_tokens)
    )
    observe = first_seen.observe
    try:
        if block := formatter.opening():
            yield block
        events = early or await services.relay.take(stream)
        while True:
            if any(isinstance(event, Delta) and event.text for event in events):
                seen, before = time.monotonic(), seen
                observe(seen - before)
                observe = next_seen.observe
            if block := b"".join(frame for event in events for frame in formatter.frames(event)):
                yield block
            if isinstance(events[-1], Finished):
                break
            events = await services.relay.take(stream)
    except Stopping:
        raise StreamBroken from None  # the client resumes at another process
    if (problem := problem_of_outcome(events[-1].outcome)) and not formatter.tells_failure:
        yield error_frame(problem)
        raise StreamBroken


async def collect(services: Services, stream: JobStream, answer: AnswerCollector) -> dict[str, Any]:
    while True:
        events = await services.relay.take(stream)
        for event in events:
            answer.add(event)
        if usage := _raise_failure(events):
            return answer.body(usage)


def _raise_failure(events: Sequence[Event]) -> Usage | None:
    """Return the usage if these events complete the job; raise Refused if they end it otherwise."""
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
