"""How much more a worker may claim. Pure.

A job of few sequences takes as many places as it has. A wide one takes what the others leave, since the scheduler takes
places from it for any other job: so it never keeps a worker to itself, and never counts for more than is left. There is
one such job on a worker at a time, or as many as fit side by side.
"""

from collections.abc import Sequence
from typing import NamedTuple

from shared.queue import ANY_WIDTH

RESERVED = 8  # this part of the places is kept from wide jobs
WIDE = 4  # a job that asks for more than this part of the places is wide, but none of WIDE sequences or fewer


class Room(NamedTuple):
    """`sequences`: to be claimed, none if not above 0. `widest`: the most that one waiting job may have."""

    sequences: int
    widest: int


def room_beside(widths: Sequence[int], places: int) -> Room:
    """`widths`: of the jobs that are here."""
    usual = max(places // WIDE, WIDE)
    wide = [width for width in widths if width > usual]
    taken = sum(widths) - sum(wide)
    if not wide:
        return Room(places - taken, ANY_WIDTH)
    left = places - -(-places // RESERVED) - taken
    return Room(places - taken - max(min(sum(wide), left), 1), max(places - sum(widths), usual))
