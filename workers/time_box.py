"""A bound on how long Python code may run in the thread that calls it: code that we did not write, like a template."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeBoxExceeded(Exception):
    pass


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raises TimeBoxExceeded in the body when it takes longer. A call into C is not interrupted before it ends."""
    thread = threading.get_ident()
    lock = threading.Lock()
    over = False

    def interrupt() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeBoxExceeded))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
