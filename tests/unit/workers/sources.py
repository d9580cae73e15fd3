"""Sources for tests, and deliveries for their runs."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from penstock.engines import ChatRequest, ChatSource, CompletionRequest, EngineBroken, Piece, Resume
from shared.domain.events import Event
from shared.domain.job import Job
from shared.queue.protocols import Delivery
from tests.factories import make_job


class Echo(ChatSource):
    """Answers with the words of the question."""

    resume = Resume.REPEAT

    async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        for word in words(request):
            yield word
            await asyncio.sleep(0)

    async def complete(self, request: CompletionRequest) -> AsyncIterator[Piece]:
        yield f"{request.prompt} and so on"

    async def embed(self, texts: Sequence[str | list[int]], *, dimensions: int | None) -> Sequence[Sequence[float]]:
        return [[float(len(text)), 1.0] for text in texts]


class Continuing(Echo):
    """The same, but it goes on after what was said."""

    resume = Resume.EXACT

    async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        whole = "".join(words(request))
        for word in re.findall(r"\S*\s*", whole.removeprefix(request.said.text)):
            yield word


class Restarting(Echo):
    resume = Resume.RESTART


class Plain(ChatSource):
    """The same by a plain generator."""

    resume = Resume.REPEAT

    def chat(self, request: ChatRequest) -> Iterator[Piece]:
        yield from words(request)


def words(request: ChatRequest) -> list[str]:
    """The words of the question, each with the space after it."""
    if request.question == "break":
        raise EngineBroken("the question asked for it")
    if request.question == "fail":
        raise ValueError("the question asked for it")
    return re.findall(r"\S+\s*", request.question)


class Given(ChatSource):
    """Answers with the given pieces, whatever is asked."""

    def __init__(self, *pieces: Piece, options: BaseModel | None = None) -> None:
        super().__init__(options)
        self.pieces = pieces
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        self.asked.append(request)
        for piece in self.pieces:
            yield piece


def delivered(job: Job | None = None, *log: Event, isolated: bool = False, **job_fields: Any) -> Delivery:
    return Delivery(job=job or make_job(**job_fields), claim_token="t", attempt=1, log=log, isolated=isolated)


def after(delivery: Delivery, events: Sequence[Event]) -> Delivery:
    """The delivery of the same job, after an attempt that wrote these events."""
    return dataclasses.replace(delivery, log=tuple(events), attempt=delivery.attempt + 1)
