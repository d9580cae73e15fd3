"""Code that is not ours runs under a time limit."""

import threading
from contextlib import suppress

import pytest

from workers.process.time_limit import TimeLimitExceeded, time_limit


def forever() -> None:
    while True:
        pass


def interrupted() -> None:
    with pytest.raises(TimeLimitExceeded), time_limit(0.01):
        forever()


def test_a_body_that_takes_too_long_is_interrupted_again_and_again() -> None:
    for _ in range(3):
        with pytest.raises(TimeLimitExceeded), time_limit(0.01):
            forever()


def test_a_body_that_overlooks_it_is_told_at_its_end() -> None:
    def careless() -> None:
        with suppress(Exception):
            forever()

    with pytest.raises(TimeLimitExceeded), time_limit(0.01):
        careless()


def test_nothing_is_raised_after_a_body_that_was_in_time() -> None:
    for _ in range(200):
        with time_limit(0.001):
            pass

    boxed = threading.Thread(target=interrupted)  # by then the watching thread has looked at all limits
    boxed.start()
    boxed.join(10)
    assert not boxed.is_alive()


def test_the_outer_of_two_boxes_ends_both_bodies() -> None:
    reached = []

    def nested() -> None:
        with time_limit(60):
            forever()
        reached.append("behind the inner one")

    with pytest.raises(TimeLimitExceeded), time_limit(0.01):
        nested()
    assert reached == []


def test_each_thread_has_its_own() -> None:
    ended = threading.Event()

    def boxed() -> None:
        with pytest.raises(TimeLimitExceeded), time_limit(0.01):
            forever()
        ended.set()

    threads = [threading.Thread(target=boxed, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert ended.is_set()
    assert not any(thread.is_alive() for thread in threads)
