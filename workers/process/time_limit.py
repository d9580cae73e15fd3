"""A time limit for Python code in the thread that calls it: code that we did not write, like a template, or code that
reads what a model wrote."""

import ctypes
import threading
import time

TICK_S = 0.25
MISSING = object()


class TimeLimitExceeded(Exception):
    pass


class time_limit:
    """Raise TimeLimitExceeded in the body if it takes longer, at most TICK_S late. A call into C is not interrupted
    before it returns. Cheap enough for every token: one thread watches all limits of the process."""

    __slots__ = ("_seconds", "deadline", "raised", "thread")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.raised = False

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        self.deadline = time.monotonic() + self._seconds
        _WATCH.open(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is TimeLimitExceeded:
            _WATCH.withdraw(self)
        else:
            _WATCH.close(self)


class _Watch:
    """There is no lock, which the exception could leave taken: the thread that takes a limit out of the dictionary owns
    it."""

    def __init__(self) -> None:
        self._limits: dict[time_limit, object] = {}
        self._some = threading.Event()
        self._starting = threading.Lock()
        self._started = False

    def open(self, limit: time_limit) -> None:
        self._limits[limit] = None
        if not self._some.is_set():
            self._some.set()
        if not self._started:
            self._start()

    def withdraw(self, limit: time_limit) -> bool:
        """Remove the limit, so that nothing is raised for it any more; False if its time was up before."""
        return self._limits.pop(limit, MISSING) is not MISSING

    def close(self, limit: time_limit) -> None:
        """End the limit. Raises TimeLimitExceeded if its time was up before: in the body, or here if that missed it."""
        if not self.withdraw(limit):
            while not limit.raised:
                time.sleep(0.001)  # the exception is about to be raised here
            raise TimeLimitExceeded

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="time limits", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(TICK_S)
            now = time.monotonic()
            for limit in list(self._limits):
                if limit.deadline <= now and self.withdraw(limit):
                    _raise_in(limit.thread)
                    limit.raised = True
            if not self._limits:
                self._some.clear()
                if self._limits:  # one was opened just then
                    self._some.set()


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeLimitExceeded))


_WATCH = _Watch()
