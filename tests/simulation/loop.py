"""Time that passes only when everybody waits, so that a run depends on nothing but its seed. A thread is a callback
that lets the event loop go on in the middle of itself."""

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

STEP_S = 0.01
IDLE_S = 0.025  # between the calls of a thread that has nothing to compute


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`threaded`: what runs now stands for another thread's work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threaded = False
        self._ready: Any
        self._scheduled: Any
        super().__init__()

    def time(self) -> float:
        return self.now

    def in_thread(self, call: Callable[[], bool]) -> bool:
        """From a plain callback only: a task cannot be entered while another one is."""
        self.threaded = True
        try:
            return call()
        finally:
            self.threaded = False

    def meanwhile(self, seconds: float) -> None:
        """The thread that runs now is busy, and everybody else goes on."""
        over = self.create_future()
        self.call_later(seconds, over.set_result, None)
        self.threaded = False
        while not over.done():
            self._run_once()
        self.threaded = True

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """The loop may well be there before the thread that calls it does anything more."""
        handle = self.call_soon(callback, *args, context=context)
        if self.threaded:
            self.meanwhile(0)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Done at once: there are no threads here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        """One callback, since it may run others in its midst. Waiting for nothing else is what moves the clock."""
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
        """It stays where it is until its time has come."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


class SimulatedThread:
    """A CallThread whose calls take simulated time. `pause` is for what is called in it: it takes a while, in which the
    event loop goes on."""

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
    """What can be killed or frozen: everything that it does passes its gate, except that its threads end the step that
    they are in. `asked_at`: when it last asked the queue for work."""

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
        """A killed one stays dead."""
        if self.killed:
            return
        self._open.set()
        thawing, self._thawing = self._thawing, []
        for call in thawing:
            call()
