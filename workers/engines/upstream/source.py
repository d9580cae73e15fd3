"""The text upstream: a source whose answers come from other servers, the next one if one fails."""

from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from shared.domain.events import CallPart, Usage
from workers.engines.upstream.attempts import Attempts, refusal
from workers.engines.upstream.chat_body import tokens_of
from workers.engines.upstream.errors import UpstreamBroken, UpstreamError, UpstreamRefused
from workers.engines.upstream.upstream import Upstream
from workers.source import (
    AnswerLost,
    Busy,
    ChatRequest,
    ChatSource,
    CompletionRequest,
    Piece,
    Reasoning,
    Resume,
    Said,
    Text,
)

AGAIN_S = 0.05
INPUTS_MAX = 64  # of one request for vectors; some providers take no more
Result = TypeVar("Result")


class UpstreamSource(ChatSource):
    """An answer is asked of the upstreams in their order. What has no room or does not answer is passed over. An answer
    that breaks off is continued by the next if `resume` allows it, and never joined from two answers."""

    keeps_budget = True
    counts_whole = True

    def __init__(
        self,
        upstreams: Seq[Upstream],
        *,
        resume: Resume,
        serves: frozenset[str],
        abilities: frozenset[str] = frozenset(),
    ) -> None:
        self.resume = resume
        self.abilities = abilities
        self._upstreams = upstreams
        self._serves = serves

    @property
    def serves(self) -> frozenset[str]:
        return self._serves

    def cost(self, usage: Usage) -> int:
        """Return the cost by the first upstream's price: no usage says which one has answered."""
        return self._upstreams[0].cost(usage)

    def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        return self._answer(request)

    def complete(self, request: CompletionRequest) -> AsyncIterator[Piece]:
        return self._answer(request)

    async def embed(self, texts: Seq[str | list[int]], *, dimensions: int | None) -> list[list[float]]:
        wanted: dict[str, Any] = {"encoding_format": "float"} | ({"dimensions": dimensions} if dimensions else {})
        vectors: list[list[float]] = []
        for at in range(0, len(texts), INPUTS_MAX):
            vectors += await self._posted(
                "/embeddings", wanted | {"input": list(texts[at : at + INPUTS_MAX])}, _vectors
            )
        return vectors

    async def rerank(self, query: str, documents: Seq[str]) -> list[float]:
        return await self._posted("/rerank", {"query": query, "documents": list(documents)}, _scores)

    async def _posted(self, path: str, body: dict[str, Any], read: Callable[[Any], Result]) -> Result:
        """Return the answer of the first upstream that has room."""
        attempts = Attempts(self._upstreams)
        for upstream in attempts:
            try:
                return read(await upstream.post(path, body))
            except UpstreamRefused as error:
                raise refusal(error, begun=False) from error
            except UpstreamError as error:
                attempts.failed(upstream, error, begun=False)
        raise attempts.verdict(begun=False)

    async def _answer(self, request: ChatRequest | CompletionRequest) -> AsyncIterator[Piece]:
        so_far = _SoFar(request.said)
        attempts = Attempts(self._upstreams, quota=request.quota)
        for upstream in attempts:
            said = self._resumed(so_far)
            try:
                async with aclosing(upstream.answer(request, said)) as answer:
                    async for pieces in answer:
                        for piece in pieces:
                            yield so_far.take(piece, said, upstream)
                return
            except UpstreamRefused as error:
                raise refusal(error, begun=bool(so_far.said)) from error
            except UpstreamError as error:
                attempts.failed(upstream, error, begun=so_far.grown)
                so_far.grown = False
        raise attempts.verdict(begun=bool(so_far.said))

    def _resumed(self, so_far: "_SoFar") -> Said:
        """Return what the next upstream has to continue. Raises AnswerLost, or Busy for an answer that must be compared
        with what was said of it: that is done where its job is begun."""
        said = so_far.said
        if self.resume is Resume.REPEAT and so_far.begun:
            raise Busy("the answer is asked for again from its beginning", retry_after_s=AGAIN_S)
        if not said or self.resume is Resume.REPEAT:
            return Said()
        if self.resume is Resume.RESTART or said.reasoning or said.calls:
            raise AnswerLost("The upstream broke off in the middle of the answer, which cannot be continued.")
        return said


def _vectors(answer: Any) -> list[list[float]]:
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return [list(map(float, row["embedding"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UpstreamBroken("sends vectors in a form that is not known", final=True) from error


def _scores(answer: Any) -> list[float]:
    """Scores in the order of the documents; vLLM, Jina and Cohere call them `relevance_score`, others `score`."""
    try:
        rows = sorted(answer["results"], key=lambda row: row["index"])
        return [float(row.get("relevance_score", row.get("score"))) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UpstreamBroken("sends scores in a form that is not known", final=True) from error


class _SoFar:
    """The answer as it grows. `begun` is true if it has grown here, `grown` if by the present upstream."""

    def __init__(self, said: Said) -> None:
        self.begun = self.grown = False
        self._texts = [said.text]
        self._reasoning = [said.reasoning]
        self._calls = list(said.calls)
        self._pieces = said.pieces

    @property
    def said(self) -> Said:
        text, reasoning = "".join(self._texts), "".join(self._reasoning)
        return Said(text=text, reasoning=reasoning, calls=tuple(self._calls), pieces=self._pieces)

    def take(self, piece: Piece, continued: Said, upstream: Upstream) -> Piece:
        match piece:
            case Text(text=text):
                self._texts.append(text)
            case Reasoning(text=text):
                self._reasoning.append(text)
            case CallPart():
                self._calls.append(piece)
            case Usage():
                usage = _whole(piece, continued) if continued.text else piece
                return replace(usage, cost_micros=upstream.cost(usage))
            case _:
                return piece
        self.begun = self.grown = True
        self._pieces += 1
        return piece


def _whole(usage: Usage, continued: Said) -> Usage:
    """The usage of the whole answer, by that of its continuation, whose prompt had the beginning in it."""
    begun = tokens_of(continued)
    prompt, completion = max(usage.prompt_tokens - begun, 0), usage.completion_tokens + begun
    return replace(usage, prompt_tokens=prompt, completion_tokens=completion)
