"""A thread that runs one call after the other.

Each model has one for all its computing, including its loading: torch's libraries give each thread that multiplies
matrices a pool of helpers, and the pools of two threads, even idle ones, make every step take half as long again.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class SingleThread:
    """A daemon thread, so that a call that never returns does not keep the process from ending. If `may_wait`, calls
    may block."""

    may_wait = True

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Queue a call; calls run one after the other, in order."""
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def repeat(self, call: Callable[[], bool]) -> "Future[None]":
        """Run the call again and again until it returns False."""

        def calls() -> None:
            while call():
                pass

        return self.submit(calls)

    def _run(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # it belongs to the caller, whatever it is
                future.set_exception(error)
