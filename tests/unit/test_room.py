"""How much more a worker claims beside what it has."""

import pytest

from shared.queue import ANY_WIDTH
from workers.room import Room, room_beside


@pytest.mark.parametrize(
    ("widths", "room"),
    [
        ([], Room(32, ANY_WIDTH)),
        ([1] * 30, Room(2, ANY_WIDTH)),
        ([8, 8, 8, 8], Room(0, ANY_WIDTH)),  # each of them is as wide as is usual
        ([256], Room(4, 8)),  # a wide one leaves room
        ([256, 1, 1, 1, 1], Room(4, 8)),  # and gives way
        ([256] + [1] * 30, Room(1, 8)),
        ([256] + [1] * 31, Room(0, 8)),  # down to one place
        ([16], Room(16, 16)),  # a second of its kind fits beside it
        ([16, 16], Room(4, 8)),
    ],
)
def test_wide_jobs_take_what_is_left(widths: list[int], room: Room) -> None:
    assert room_beside(widths, 32) == room


def test_a_worker_of_one_place_serves_wide_jobs_one_after_the_other() -> None:
    assert room_beside([], 1) == Room(1, ANY_WIDTH)
    assert room_beside([9], 1).sequences <= 0
