"""Runs a question to Redis for a bounded time, so that Ctrl-C is noticed soon."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from shared.domain.errors import QueueUnavailable

ASK_S = 2.0
Result = TypeVar("Result")


def run_bounded(question: Coroutine[Any, Any, Result]) -> Result:
    """Run the coroutine for ASK_S at most. Raises QueueUnavailable after that."""

    async def bounded() -> Result:
        async with asyncio.timeout(ASK_S):
            return await question

    try:
        return asyncio.run(bounded())
    except TimeoutError as error:
        raise QueueUnavailable(f"Redis does not answer within {ASK_S:g} s") from error
