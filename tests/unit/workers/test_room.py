"""The room rule: how many sequences a worker may claim beside those it has."""

import pytest

from shared.queue.protocols import Room
from tests.factories import make_job
from workers.loop.room import room_beside

A = frozenset({"a"})


@pytest.mark.parametrize(
    ("widths", "room"),
    [
        ([], Room(32)),
        ([1] * 30, Room(2)),
        ([8, 8, 8, 8], Room(0)),  # each of them is as wide as is usual
        ([256], Room(4, 8, A)),  # a wide one leaves room
        ([256, 1, 1, 1, 1], Room(4, 8, A)),  # and gives way
        ([256] + [1] * 30, Room(1, 8, A)),
        ([256] + [1] * 31, Room(0, 8, A)),  # down to one place
        ([16], Room(16, 16, A)),  # a second of its kind fits beside it
        ([16, 16], Room(4, 8, A)),
    ],
)
def test_wide_jobs_take_what_is_left(widths: list[int], room: Room) -> None:
    assert room_beside([make_job(n=width, tenant="a") for width in widths], 32) == room


def test_a_tenant_with_a_wide_job_keeps_no_other_tenant_from_one() -> None:
    room = room_beside([make_job(n=256, tenant="a")], 32)

    assert not room.fits(make_job(n=256, tenant="a"))
    assert room.fits(make_job(n=8, tenant="a"))
    assert room.fits(make_job(n=256, tenant="b"))


@pytest.mark.parametrize("places", range(2, 9))
def test_no_job_takes_all_places_of_a_small_worker(places: int) -> None:
    for width in range(places, 20):
        assert room_beside([make_job(n=width)], places).sequences > 0 or width <= places // 2


def test_a_worker_of_one_place_serves_one_job_after_the_other() -> None:
    assert room_beside([], 1) == Room(1)
    assert room_beside([make_job(n=9)], 1).sequences <= 0
