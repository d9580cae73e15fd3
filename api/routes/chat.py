"""`POST /v1/chat/completions`: admit, enqueue, relay."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from api.formats.chat import ChatChunks, WholeChat
from api.house import House, house_of
from api.problems import Refused, problem_of_outcome
from api.relay import JobStream
from api.schemas.chat import ChatCompletionRequest
from api.sse import EventStream, StreamBroken, error_frame
from shared.errors import QueueUnavailable
from shared.events import Completed, Delta, Event, Finished, Started, Usage
from shared.job import Job
from shared.tasks import end

router = APIRouter()
CLIENT_LEFT = 499  # nobody reads it; the access counts do


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, house: Annotated[House, Depends(house_of)]
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves."""
    began = time.monotonic()
    job = await house.admission.chat(body)
    with ExitStack() as opened:
        stream = opened.enter_context(house.relay.open(job.id))
        await _enqueue(house, job, stream)
        if not body.stream:
            whole = await _until_left(request, _whole(house, job, stream))
            return JSONResponse(whole) if whole else Response(status_code=CLIENT_LEFT)
        first = await _early(house, stream)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        blocks = _blocks(house, stream, first, ChatChunks(job, include_usage=include_usage), began, opened.pop_all())
        return EventStream(blocks, keep_alive_s=house.settings.keep_alive_s)


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
    house: House, stream: JobStream, first: list[Event], chunks: ChatChunks, began: float, opened: ExitStack
) -> AsyncIterator[bytes]:
    """The body of a stream. `opened` holds the relay's stream, closed however this ends."""
    with opened:
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


async def _whole(house: House, job: Job, stream: JobStream) -> dict[str, Any]:
    whole = WholeChat(job)
    while True:
        events = await house.relay.take(stream)
        for event in events:
            whole.add(event)
        if usage := _raise_failure(events):
            return whole.body(usage)


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
