"""The breaker by its clock."""

import pytest

from workers.engines.upstream.breaker import Breaker


def fail(breaker: Breaker, at: float, times: int = 5) -> None:
    for _ in range(times):
        breaker.begin(at)
        breaker.failed(at)


def test_it_opens_at_five_failures_within_ten_seconds() -> None:
    breaker = Breaker()

    fail(breaker, 0.0, times=4)
    assert breaker.open_for(0.0) == 0

    fail(breaker, 9.9, times=1)
    assert breaker.open_for(9.9) == 2


def test_failures_that_are_far_apart_do_not_open_it() -> None:
    breaker = Breaker()

    for second in range(0, 60, 3):
        fail(breaker, second, times=1)

    assert breaker.open_for(60) == 0


def test_a_success_forgets_failures() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, times=4)

    breaker.succeeded()
    fail(breaker, 1.0, times=4)

    assert breaker.open_for(1.0) == 0


def test_after_the_pause_one_request_passes_and_its_success_closes_it() -> None:
    breaker = Breaker()
    fail(breaker, 0.0)

    assert breaker.open_for(2.0) == 0
    breaker.begin(2.0)
    assert breaker.open_for(2.0) > 0

    breaker.succeeded()
    assert breaker.open_for(2.0) == 0


def test_each_failed_trial_doubles_the_pause_up_to_a_minute() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    fail(breaker, now)

    for _ in range(7):
        pauses.append(breaker.open_for(now))
        now += pauses[-1]
        fail(breaker, now, times=1)

    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_a_trial_whose_client_left_is_followed_by_another() -> None:
    breaker = Breaker()
    fail(breaker, 0.0)
    breaker.begin(2.0)

    breaker.left()

    assert breaker.open_for(2.0) == 0


def test_a_trial_that_never_ends_does_not_keep_it_open_for_ever() -> None:
    breaker = Breaker()
    fail(breaker, 0.0)
    breaker.begin(2.0)

    assert breaker.open_for(121.5) == pytest.approx(0.5)
    assert breaker.open_for(122.0) == 0
