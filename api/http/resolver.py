"""Look-ups of host names, in threads of their own: a resolver may block for long, and must hold up neither files nor
anybody else's look-ups."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary


class ResolverBusy(Exception):
    """No look-up was begun: neither the tenant's turn nor a thread came in time."""


class Resolver:
    """At most `at_once` look-ups run, and one of each tenant. Nobody can end a look-up; one whose caller has left keeps
    its thread, and its tenant's turn, until the system gives it up. `wait_s`: for a turn and a thread. `timeout_s`: for
    the answer."""

    def __init__(self, at_once: int, *, wait_s: float, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="resolve")
        self._free = asyncio.Semaphore(at_once)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wait_s = wait_s
        self._timeout_s = timeout_s

    async def look_up(self, host: str, port: int, *, tenant: str) -> list[str]:
        """The addresses. Raises ResolverBusy, TimeoutError, or what the system says (OSError, UnicodeError)."""
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
        """The call, made in this event loop by whichever thread is done."""
        loop = asyncio.get_running_loop()

        def done(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended before the look-up
                loop.call_soon_threadsafe(call)

        return done
