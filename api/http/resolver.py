"""Host name look-ups in threads of their own: a resolver may block for long, and must hold up neither file access nor
another tenant's look-ups."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary


class ResolverBusy(Exception):
    """The look-up was not begun: the tenant's lock or a thread was not free in time."""


class Resolver:
    """Runs at most `at_once` look-ups, and one for each tenant. A look-up cannot be cancelled: after its caller has
    left, it keeps its thread and its tenant's lock until the system gives up. `wait_s` bounds the wait for both,
    `timeout_s` the wait for the answer."""

    def __init__(self, at_once: int, *, wait_s: float, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="resolve")
        self._free = asyncio.Semaphore(at_once)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wait_s = wait_s
        self._timeout_s = timeout_s

    async def look_up(self, host: str, port: int, *, tenant: str) -> list[str]:
        """Return the host's addresses. Raises ResolverBusy, TimeoutError, or the system's OSError or UnicodeError."""
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        try:
            async with asyncio.timeout(self._wait_s):
                await self._enter(turn)
        except TimeoutError as error:
            raise ResolverBusy from error
        work = self._threads.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        work.add_done_callback(self._soon(partial(self._leave, turn)))
        async with asyncio.timeout(self._timeout_s):
            found = await asyncio.wrap_future(work)
        return [str(entry[4][0]) for entry in found]

    async def _enter(self, turn: asyncio.Lock) -> None:
        await turn.acquire()
        try:
            await self._free.acquire()
        except BaseException:
            turn.release()
            raise

    def _leave(self, turn: asyncio.Lock) -> None:
        self._free.release()
        turn.release()

    @staticmethod
    def _soon(call: Callable[[], None]) -> Callable[[Future[Any]], None]:
        """Return a callback that a thread may call, which runs `call` in this event loop."""
        loop = asyncio.get_running_loop()

        def done(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended before the look-up
                loop.call_soon_threadsafe(call)

        return done
