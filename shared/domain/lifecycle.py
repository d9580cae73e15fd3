"""The life of a job as a table. An illegal move raises and changes nothing.

State names are RQ's, so that RQ's tools show the true state. The Lua scripts make the same moves inside Redis; the
contract suite compares the two.
"""

from enum import StrEnum

from shared.domain.events import Cancelled, Completed, Expired, Failed, Outcome


class State(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


def state_of(status: bytes) -> State:
    """Return a job's state. Another tool may have set one that Penstock does not use."""
    name = status.decode(errors="replace")
    return State(name) if name in list(State) else State.FAILED


class Move(StrEnum):
    QUEUE = "queue"
    CLAIM = "claim"
    RECLAIM = "reclaim"
    RELEASE = "release"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    REQUEUE = "requeue"


TABLE: dict[tuple[State, Move], State] = {
    (State.SCHEDULED, Move.QUEUE): State.QUEUED,
    (State.SCHEDULED, Move.CANCEL): State.CANCELED,
    (State.QUEUED, Move.CLAIM): State.STARTED,
    (State.QUEUED, Move.CANCEL): State.CANCELED,
    (State.STARTED, Move.RECLAIM): State.STARTED,
    (State.STARTED, Move.RELEASE): State.STARTED,
    (State.STARTED, Move.COMPLETE): State.FINISHED,
    (State.STARTED, Move.FAIL): State.FAILED,
    (State.STARTED, Move.CANCEL): State.CANCELED,
    (State.FAILED, Move.REQUEUE): State.QUEUED,
}
TERMINAL = frozenset({State.FINISHED, State.FAILED, State.CANCELED})


class IllegalMove(Exception):
    pass


def after(state: State, move: Move) -> State:
    try:
        return TABLE[state, move]
    except KeyError:
        raise IllegalMove(f"a {state} job cannot {move}") from None


def settling(outcome: Outcome) -> Move:
    """Return the move that an outcome makes. An expired job counts as failed, so that it can be replayed. A job whose
    request was wrong counts as cancelled: nobody needs to look at it, and no requeue would help it. Its client still
    reads the error in the log. A worker of release 0.2 settles such a job as failed; every reader goes by the log's
    last event and so accepts both."""
    match outcome:
        case Completed():
            return Move.COMPLETE
        case Failed(by_request=True) | Cancelled():
            return Move.CANCEL
        case Failed() | Expired():
            return Move.FAIL
