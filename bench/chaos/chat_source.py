"""A class of one's own, as an engine: it says its known answers again after its worker died."""

import asyncio
from collections.abc import AsyncIterator

from bench.chaos.known_answers import parts
from penstock.engines import CallPart, ChatRequest, ChatSource, CompletionRequest, Piece

STEP_S = 0.02


class Repeating(ChatSource):
    resume = "repeat"
    abilities = frozenset({"tools"})

    async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        name, texts = parts(request.question, {"tools": request.tools})
        if name:
            yield CallPart(0, f"call_{request.job_id}", name, "")
        for text in texts:
            await asyncio.sleep(STEP_S)
            yield CallPart(0, "", "", text) if name else text

    async def complete(self, request: CompletionRequest) -> AsyncIterator[Piece]:
        for text in parts(str(request.prompt), {})[1]:
            await asyncio.sleep(STEP_S)
            yield text
