"""Upstreams of one stand-in or several, and requests for them."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from shared.domain.events import CallPart, FinishReason, Usage
from shared.domain.job import Sampling
from tests.upstreams import StandIn
from workers.engines.upstream.options import Target
from workers.engines.upstream.source import UpstreamSource
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.source import ChatRequest, Piece, Reasoning, Resume, Text

CHAT = frozenset({"chat"})
SourceOf = Callable[..., UpstreamSource]


def asked(text: str = "hello", *, seeded: bool = False, sampling: Any = None, **more: Any) -> ChatRequest:
    given: dict[str, Any] = {
        "job_id": "j",
        "model": "ours",
        "choice": 0,
        "messages": [{"role": "user", "content": text}],
    }
    return ChatRequest(**given | {"sampling": sampling or Sampling(seed=1, seeded=seeded)} | more)


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = Transport(silence_s=0.5)
    yield transport
    await transport.close()


@pytest.fixture
def source_of(transport: Transport) -> SourceOf:
    """A source over stand-ins, in their order."""

    def make(*stand_ins: StandIn, resume: Resume = Resume.RESTART, **target: Any) -> UpstreamSource:
        targets = [Target(url=each.url, **target) for each in stand_ins]
        upstreams = [Upstream(each, transport, model="m") for each in targets]
        return UpstreamSource(upstreams, resume=resume, serves=CHAT)

    return make


async def said_by(source: UpstreamSource, request: ChatRequest) -> list[Piece]:
    return [piece async for piece in source.chat(request)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def reasoning_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))


def calls_of(pieces: list[Piece]) -> list[CallPart]:
    return [piece for piece in pieces if isinstance(piece, CallPart)]


def end_of(pieces: list[Piece]) -> list[FinishReason | Usage]:
    return [piece for piece in pieces if isinstance(piece, FinishReason | Usage)]
