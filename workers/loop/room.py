"""The room rule says how many sequences a worker may claim beside those it has. Pure.

A job of few sequences takes as many places as it has sequences. A wide job may be claimed while any place is free, and
is charged at most the places that the others leave, minus an eighth of all, which is kept free: the scheduler takes
places from it for any other job. So it never keeps a worker to itself. A tenant has one wide job on a worker at a time,
or as many as fit side by side.
"""

from collections.abc import Sequence

from shared.domain.job import Job
from shared.queue.protocols import Room

RESERVED = 8  # one in so many places is kept from wide jobs
WIDE = 4  # a job of more than one in so many places is wide, unless it has WIDE sequences or fewer


def room_beside(jobs: Sequence[Job], places: int) -> Room:
    """The number of sequences that may be claimed. `jobs`: those that the worker holds."""
    usual = min(max(places // WIDE, WIDE), max(places - 1, 1))
    wide = [job for job in jobs if job.sequences > usual]
    taken = sum(job.sequences for job in jobs if job.sequences <= usual)
    if not wide:
        return Room(places - taken)
    widths = sum(job.sequences for job in wide)
    left = places - -(-places // RESERVED) - taken
    tenants = frozenset(job.tenant for job in wide)
    return Room(places - taken - max(min(widths, left), len(wide)), max(places - taken - widths, usual), tenants)
