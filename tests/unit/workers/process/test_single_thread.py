"""Calls run one after another in one thread, and their exceptions reach their callers."""

import threading

import pytest

from workers.process.single_thread import SingleThread


def test_calls_run_in_order_in_one_thread() -> None:
    thread = SingleThread("test")
    seen: list[str] = []

    for _ in range(20):
        thread.submit(lambda: seen.append(threading.current_thread().name))

    assert thread.submit(lambda: len(seen)).result(5) == 20
    assert set(seen) == {"test"}


def test_an_error_belongs_to_its_call_alone() -> None:
    thread = SingleThread("test")

    bad, good = thread.submit(lambda: 1 / 0), thread.submit(lambda: 42)

    with pytest.raises(ZeroDivisionError):
        bad.result(5)
    assert good.result(5) == 42
