"""A bound on how long Python code may run in the thread that calls it: code that we did not write, like a template, or
code that reads what a model wrote."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TICK_S = 0.25


class TimeBoxExceeded(Exception):
    pass


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raises TimeBoxExceeded in the body when it takes longer, at most TICK_S late. A call into C is not interrupted
    before it ends. Cheap enough for every token: one thread watches all boxes of the process."""
    box = (threading.get_ident(), time.monotonic() + seconds, object())
    _WATCH.open(box)
    try:
        yield
    finally:
        _WATCH.close(box)


_Box = tuple[int, float, object]  # a thread, when its time is over, and what makes the box different from all others


class _Watch:
    def __init__(self) -> None:
        self._boxes: set[_Box] = set()
        self._changed = threading.Condition()
        self._running = False
        self._asleep = False

    def open(self, box: _Box) -> None:
        with self._changed:
            self._boxes.add(box)
            if self._asleep:
                self._changed.notify()
            elif not self._running:
                self._running = True
                threading.Thread(target=self._run, name="time boxes", daemon=True).start()

    def close(self, box: _Box) -> None:
        """Nothing is raised in its thread from now on."""
        with self._changed:
            self._boxes.discard(box)

    def _run(self) -> None:
        with self._changed:
            while True:
                self._asleep = not self._boxes
                self._changed.wait(None if self._asleep else TICK_S)
                self._asleep = False
                for box in [box for box in self._boxes if box[1] <= time.monotonic()]:
                    self._boxes.discard(box)
                    _raise_in(box[0])


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeBoxExceeded))


_WATCH = _Watch()
