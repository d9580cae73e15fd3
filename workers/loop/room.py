"""How much more a worker may claim. Pure.

A job of few sequences takes as many places as it has. A wide job may be claimed while any place is free and counts for
what the others leave, but an eighth of the places, since the scheduler takes places from it for any other job. So it
never keeps a worker to itself. A tenant has one such job on a worker at a time, or as many as fit side by side.
"""

from collections.abc import Sequence

from shared.domain.job import Job
from shared.queue.protocols import Room

RESERVED = 8  # this part of the places is kept from wide jobs
WIDE = 4  # a job that asks for more than this part of the places is wide, but none of WIDE sequences or fewer


def room_beside(jobs: Sequence[Job], places: int) -> Room:
    """`jobs`: those that are here."""
    usual = min(max(places // WIDE, WIDE), max(places - 1, 1))
    wide = [job for job in jobs if job.sequences > usual]
    taken = sum(job.sequences for job in jobs if job.sequences <= usual)
    if not wide:
        return Room(places - taken)
    widths = sum(job.sequences for job in wide)
    left = places - -(-places // RESERVED) - taken
    tenants = frozenset(job.tenant for job in wide)
    return Room(places - taken - max(min(widths, left), len(wide)), max(places - taken - widths, usual), tenants)
