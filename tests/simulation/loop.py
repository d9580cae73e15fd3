"""An event loop in simulated time: the clock moves only while every task waits, so a run depends on nothing but its
seed. A thread is a callback that lets the event loop run in its middle."""

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

STEP_S = 0.01
IDLE_S = 0.025  # between the calls of a thread that has nothing to compute


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`threaded` is true while the running callback stands for another thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threaded = False
        self._ready: Any
        self._scheduled: Any
        super().__init__()

    def time(self) -> float:
        return self.now

    def in_thread(self, call: Callable[[], bool]) -> bool:
        """Run a thread's work. Only a plain callback may call this, since a task cannot run inside another one."""
        self.threaded = True
        try:
            return call()
        finally:
            self.threaded = False

    def meanwhile(self, seconds: float) -> None:
        """Let everything else run while the current thread is busy."""
        over = self.create_future()
        self.call_later(seconds, over.set_result, None)
        self.threaded = False
        while not over.done():
            self._run_once()
        self.threaded = True

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """Schedule a callback; the loop may run it before the calling thread does anything more."""
        handle = self.call_soon(callback, *args, context=context)
        if self.threaded:
            self.meanwhile(0)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run the call at once: there are no threads here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        """Run one callback only, since it may run others in its middle. The clock moves when nothing else is ready."""
        scheduled = self._scheduled
        if not self._ready:
            if not scheduled:
                raise RuntimeError("everybody waits for ever")
            self.now = max(self.now, scheduled[0].when())
        while scheduled and (scheduled[0].cancelled() or scheduled[0].when() <= self.now):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        handle = self._ready.popleft()
        if not handle.cancelled():
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave a cancelled timer in place until its time has come."""

    def _write_to_self(self) -> None:
        """Wake nothing: the loop never sleeps."""


class SimulatedThread:
    """A thread whose calls take simulated time. A call may `pause` for a while, in which the event loop runs."""

    may_wait = False

    def __init__(self, process: "Process") -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self._loop = loop
        self._process = process
        self._busy = False

    def pause(self, seconds: float) -> None:
        self._busy = True
        self._loop.meanwhile(seconds)

    def repeat(self, call: Callable[[], bool]) -> "Future[None]":
        ended: Future[None] = Future()

        def once() -> None:
            if self._process.frozen:
                self._process.when_thawed(once)
                return
            self._busy = False
            try:
                again = self._loop.in_thread(call)
            except Exception as error:
                ended.set_exception(error)
                return
            if again:
                self._loop.call_later(0 if self._busy else IDLE_S, once)
            else:
                ended.set_result(None)

        self._loop.call_soon(once)
        return ended


class Process:
    """A process that can be killed or frozen: all its actions pass its gate, but its threads finish their current step.
    `asked_at` is the time of its last claim."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Future[Any]] = []
        self.killed = False
        self.asked_at = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._thawing: list[Callable[[], None]] = []

    @property
    def frozen(self) -> bool:
        return not self._open.is_set()

    async def gate(self) -> None:
        await self._open.wait()

    def when_thawed(self, call: Callable[[], None]) -> None:
        self._thawing.append(call)

    def kill(self) -> None:
        self.killed = True
        self.freeze()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        """Wake the process; a killed one stays dead."""
        if self.killed:
            return
        self._open.set()
        thawing, self._thawing = self._thawing, []
        for call in thawing:
            call()
