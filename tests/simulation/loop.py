"""Time that passes only when everybody waits, so that a run depends on nothing but its seed."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

STEP_S = 0.01


class _Selector(selectors.SelectSelector):
    """Waits for nothing: waiting is what moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += max(timeout, 0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._time = _Selector()
        super().__init__(self._time)

    def time(self) -> float:
        return self._time.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """There are no threads here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


class SimulatedThread:
    """A CallThread whose calls take simulated time."""

    may_wait = False

    def __init__(self, process: "Process") -> None:
        self._process = process

    def repeat(self, call: Callable[[], bool]) -> "Future[None]":
        ended: Future[None] = Future()

        async def calls() -> None:
            while True:
                await self._process.gate()
                if not call():
                    break
                await asyncio.sleep(STEP_S)
            ended.set_result(None)

        self._process.tasks.append(asyncio.ensure_future(calls()))
        return ended


class Process:
    """What can be killed or frozen: everything that it does passes its gate."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Future[Any]] = []
        self._open = asyncio.Event()
        self._open.set()

    async def gate(self) -> None:
        await self._open.wait()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()
