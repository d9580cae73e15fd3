"""The records of hosts tell how long a model still has to be loaded."""

from dataclasses import replace

import pytest

from shared.domain.hosting import HostedModel, HostedState, load_left_s

IDLE = HostedModel(host="h", model="m", state=HostedState.CONFIGURED, since_s=100, load_s=40)


@pytest.mark.parametrize(
    ("state", "left_s"),
    [
        (HostedState.CONFIGURED, 40),
        (HostedState.FAILED, 40),
        (HostedState.DRAINING, 40),
        (HostedState.LOADING, 30),
        (HostedState.ASLEEP, 0),
        (HostedState.READY, 0),
    ],
)
def test_a_model_that_is_not_loaded_takes_its_measured_time(state: HostedState, left_s: float) -> None:
    assert load_left_s([replace(IDLE, state=state)], 110) == left_s


def test_the_clocks_of_two_machines_may_differ() -> None:
    loading = replace(IDLE, state=HostedState.LOADING)

    assert load_left_s([loading], 50) == 40
    assert load_left_s([loading], 500) == 0


def test_a_model_that_was_never_loaded_takes_as_long_again_as_its_progress_says() -> None:
    loading = replace(IDLE, state=HostedState.LOADING, load_s=0, progress=0.25)

    assert load_left_s([loading], 110) == 30
    assert load_left_s([replace(loading, estimated=True)], 110) == 0


def test_the_first_host_to_have_it_counts() -> None:
    assert load_left_s([IDLE, replace(IDLE, state=HostedState.LOADING)], 125) == 15
    assert load_left_s([], 0) == 0
