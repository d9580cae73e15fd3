"""Answers a request by a job: `enqueue_and_open` opens a stream for the job's events and enqueues the job, and then
`respond_stream` or `respond_whole` formats the events that come. All kinds of jobs are answered alike."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

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
from shared.domain.errors import QueueFull, QueueUnavailable, Stopping
from shared.domain.events import Completed, Delta, Event, Finished, Started, Usage
from shared.domain.job import Job
from shared.observability.metrics import ApiMetrics
from shared.observability.tracing import TRACER, to_carry
from shared.process.tasks import first_of
from shared.queue.protocols import Accepted, bounds_of
from shared.queue.refusals import later

MODEL_SAFE = "/:@+,=() "  # a header holds no other characters than letters, digits and these as they are
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


async def respond_stream(services: Services, submission: Submission, options: RequestOptions) -> Response:
    """Enqueue the job, and send the frames of its events as they come. A job that fails before its first token is
    answered by an HTTP status."""
    with ExitStack() as opened:
        job, stream, headers = await enqueue_and_open(services, submission, options, opened)
        first_events = await _first_token(services, stream)
        formatter = submission.formatter.stream(job, ids=options.event_ids)
        body = _body(services, stream, first_events, formatter, began=options.began)
        return _event_stream(services, body, opened, headers, formatter)


async def enqueue_and_open(
    services: Services, submission: Submission, options: RequestOptions, opened: ExitStack
) -> tuple[Job, JobStream, dict[str, str]]:
    """Open a stream for the job's events, and then enqueue the job, so that no event is missed. Return the job that
    answers the request, which is an earlier one if the same request came before; its stream; and the response headers.
    """
    job = submission.job
    services.redis_monitor.check((await services.shard_map.of_model(job.model)).client)
    stream = opened.enter_context(services.relay.open(job))
    try:
        accepted = await _enqueue(services, submission, options)
    except QueueFull as full:
        raise later(full, await services.hosted_models.load_left_s(job.model)) from None
    except QueueUnavailable:
        services.metrics.redis_errors.inc()
        # The job may be enqueued although its answer was lost; marking its stream makes its closing cancel the job.
        services.relay.mark_enqueued(stream)
        stream.grace_s = 0
        if submission.record:
            with suppress(QueueUnavailable):
                await services.queue.discard(submission.record)
        raise
    if accepted.attached:
        earlier = await services.job_records.record(accepted.job_id)
        job = replace(job, id=accepted.job_id, created_ms=accepted.created_ms, model=earlier.model)
        stream = opened.enter_context(services.relay.open(job))
    services.relay.mark_enqueued(stream, logged=accepted.attached)
    await services.hosted_models.keep(job.model, submission.keep_alive)
    wait_s = accepted.wait_s + await services.hosted_models.load_left_s(job.model)
    wait_s += max(job.not_before_ms / 1000 - time.time(), 0)
    headers = {
        **_names_of(job),
        "x-penstock-queue-position": str(accepted.ahead + 1),
        "x-penstock-tokens-ahead": str(accepted.tokens_ahead),
        "x-penstock-estimated-wait-s": f"{wait_s:.1f}",
    }
    return job, stream, headers | limit_headers(options.caller.key, accepted.limits_left)


def _names_of(job: Job) -> dict[str, str]:
    """Return the headers that name the job and the model that answers."""
    return {"x-penstock-job-id": job.id, "x-penstock-model": quote(job.model, safe=MODEL_SAFE)}


async def _enqueue(services: Services, submission: Submission, options: RequestOptions) -> Accepted:
    """Call `RedisQueue.enqueue` of the Redis that has the job's model."""
    job = submission.job
    with TRACER.start_as_current_span(f"send {job.model}", kind=SpanKind.PRODUCER) as span:
        span.set_attributes({"messaging.destination.name": job.model, "messaging.message.id": job.id})
        return await services.queue.enqueue(
            job,
            bounds=bounds_of(services.settings),
            subscriber=services.relay.name,
            idempotency=options.idempotency,
            rate_limits=services.authenticator.rate_limits(options.caller, paced=options.paced),
            render_options=submission.render_options.encode(),
            trace=to_carry(),
            record=submission.record,
        )


async def _first_token(services: Services, stream: JobStream) -> list[Event]:
    """Wait a moment for the first token, and return the events up to there. Raises Refused if the job fails first."""
    events: list[Event] = []
    try:
        async with asyncio.timeout(services.settings.first_event_ms / 1000):
            while all(isinstance(event, Started) for event in events):
                events += await services.relay.next_events(stream)
    except TimeoutError:
        return events
    _require_success(events)
    return events


async def _body(
    services: Services, stream: JobStream, first_events: list[Event], formatter: StreamFormatter, *, began: float
) -> AsyncGenerator[bytes]:
    """Yield the body of a stream: the frames of all events that are there, in one block, until the last event."""
    times = TokenTimes(services.metrics, stream.model, began=began)
    try:
        if block := formatter.opening():
            yield block
        events = first_events
        stream.tells_place = not events
        while not events:
            events = await services.relay.next_events(stream)
            stream.tells_place = not events  # before the client, which may be slow, takes the comment
            if comment := stream.take_comment():
                yield f": {comment}\n".encode()  # without a blank line, like KEEP_ALIVE
        while True:
            times.note(events)
            if block := b"".join(frame for event in events for frame in formatter.frames(event)):
                yield block
            if isinstance(events[-1], Finished):
                break
            events = await services.relay.next_events(stream)
    except Stopping:
        raise StreamBroken from None  # the client resumes at another process
    if (problem := problem_of_outcome(events[-1].outcome)) and not formatter.tells_failure:
        yield error_frame(problem)
        raise StreamBroken


class TokenTimes:
    """Observes the time to the first token of a stream, and the times between tokens. `began` is when the request came,
    by the monotonic clock."""

    def __init__(self, metrics: ApiMetrics, model: str, *, began: float) -> None:
        self._seen = began
        self._observe = metrics.first_token.labels(model).observe
        self._observe_next = metrics.between_tokens.labels(model).observe

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delta) and event.text:
                seen, before = time.monotonic(), self._seen
                self._observe(seen - before)
                self._seen, self._observe = seen, self._observe_next
                return


async def respond_whole(
    services: Services, submission: Submission, options: RequestOptions, request: Request
) -> Response:
    """Enqueue the job, and answer when it has ended."""
    body, headers = await _whole_body(services, submission, options, request)
    return _whole(body, headers)


async def respond_joined(
    services: Services,
    submissions: Sequence[Submission],
    options: RequestOptions,
    request: Request,
    join: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
) -> Response:
    """Enqueue several jobs, one after the other, and join their answers when all have ended. None is found again by an
    Idempotency-Key, which names one job."""
    options = replace(options, idempotency=None)
    bodies = []
    for submission in submissions:
        body, _ = await _whole_body(services, submission, options, request)
        if body is None:
            return _whole(None, {})
        bodies.append(body)
    return _whole(join(bodies), {})


async def _whole_body(
    services: Services, submission: Submission, options: RequestOptions, request: Request
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Enqueue the job, and return its answer when it has ended, with the response headers. There is no answer if the
    client leaves."""
    with ExitStack() as opened:
        job, stream, headers = await enqueue_and_open(services, submission, options, opened)
        try:
            answer = collect(services, stream, submission.formatter.whole(job))
            return await first_of(answer, _client_gone(request)), headers
        except Stopping:
            if not options.idempotency:  # the client cannot find the job: it never got its id
                await services.queue.leave(job.id, subscriber=services.relay.name)
            raise


def _whole(body: dict[str, Any] | None, headers: dict[str, str]) -> Response:
    if body is None:
        return Response(status_code=CLIENT_LEFT)
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


async def collect(services: Services, stream: JobStream, answer: AnswerCollector) -> dict[str, Any]:
    while True:
        events = await services.relay.next_events(stream)
        for event in events:
            answer.add(event)
        if usage := _require_success(events):
            return answer.body(usage)


def _require_success(events: Sequence[Event]) -> Usage | None:
    """Return the usage if these events complete the job; raise Refused if they end it otherwise."""
    last = events[-1]
    if not isinstance(last, Finished):
        return None
    if problem := problem_of_outcome(last.outcome):
        raise Refused(problem)
    assert isinstance(last.outcome, Completed)
    return last.outcome.usage


async def _client_gone(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def submit(services: Services, submission: Submission, options: RequestOptions) -> tuple[Job, dict[str, str]]:
    """Enqueue without waiting; return the job and the response headers."""
    with ExitStack() as opened:
        job, _, headers = await enqueue_and_open(services, submission, options, opened)
        return job, headers


async def resume_stream(services: Services, job: Job, formatter: StreamFormatter) -> Response:
    """Stream the frames of an existing job. `job` has the fields that the relay needs."""
    with ExitStack() as opened:
        stream = opened.enter_context(services.relay.open(job))
        await services.queue.attach(job.id, subscriber=services.relay.name)
        services.relay.mark_enqueued(stream, logged=True)
        body = _body(services, stream, [], formatter, began=time.monotonic())
        return _event_stream(services, body, opened, _names_of(job), formatter)


def _event_stream(
    services: Services,
    body: AsyncGenerator[bytes],
    opened: ExitStack,
    headers: dict[str, str],
    formatter: StreamFormatter,
) -> EventStream:
    return EventStream(
        body, services.settings, opened=opened.pop_all(), headers=headers, keep_alive=formatter.keep_alive
    )
