"""Positions in a stream: a frame's `id` carries one, and a client resumes a stream behind one."""

import re
from typing import NamedTuple

from shared.domain.errors import InvalidRequest

PATTERN = r"(-1|[0-9]{1,18})(?:\.([1-9][0-9]{0,17}))?"


class Position(NamedTuple):
    """The part of a stream that a client has: all frames of the events up to number `event`, and the first `frames` of
    the next one. Positions sort in the order of the stream."""

    event: int = -1
    frames: int = 0

    def __str__(self) -> str:
        return f"{self.event}.{self.frames}" if self.frames else str(self.event)

    @classmethod
    def parse(cls, text: str, *, param: str) -> "Position":
        """Read what `str` wrote. Raises InvalidRequest, which names `param`."""
        found = re.fullmatch(PATTERN, text)
        if not found:
            raise InvalidRequest(f"'{param}' must be the 'id' of a frame, like 41 or 41.1.", param=param)
        return cls(int(found[1]), int(found[2] or 0))


START = Position()


def position_after(starting_after: str | None, last_event_id: str | None) -> Position:
    """Return the position that the client names, or else the start. Raises InvalidRequest."""
    if starting_after is not None:
        return Position.parse(starting_after, param="starting_after")
    if last_event_id is not None:
        return Position.parse(last_event_id, param="Last-Event-ID")
    return START


def sequence_number_after(starting_after: str | None, last_event_id: str | None) -> int:
    """Return the same for a response, whose frames are numbered one by one. Raises InvalidRequest."""
    position = position_after(starting_after, last_event_id)
    if position.frames:
        param = "Last-Event-ID" if starting_after is None else "starting_after"
        raise InvalidRequest(f"'{param}' must be the sequence number of an event, like 41.", param=param)
    return position.event
