"""The outbox hands events from the engine's thread to the event loop. It is bounded: while Redis is away the engine
waits."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass

from shared.domain.events import Event
from workers.runs.run import JobRun


@dataclass(frozen=True, slots=True)
class Update:
    """New events of a run, in order. With `put_back` the run has ended here without a last event: its job goes back to
    the queue, once the events are written."""

    run: JobRun
    events: list[Event]
    put_back: bool = False


class Outbox:
    def __init__(self, loop: asyncio.AbstractEventLoop, *, steps_max: int) -> None:
        self._loop = loop
        self._arrived = asyncio.Event()
        self._steps_left = threading.Semaphore(steps_max)
        self._steps: deque[tuple[list[Update], bool]] = deque()  # each with whether it counts as a step
        self._wanted = False  # `take` waits, and has not been woken yet
        self._closed = False

    def put(self, updates: list[Update]) -> None:
        """Put the events of a step, from the engine's thread. Waits while `steps_max` steps are not taken yet."""
        self._steps_left.acquire()
        self._append(updates)

    def put_if_room(self, updates: list[Update]) -> bool:
        """Put the events, from another thread than the event loop's, unless that would have to wait."""
        if room := self._steps_left.acquire(blocking=False):
            self._append(updates)
        return room

    def _append(self, updates: list[Update]) -> None:
        self._steps.append((updates, True))
        if self._wanted:  # waking the event loop costs as much as reading several tokens
            self._wanted = False
            self._loop.call_soon_threadsafe(self._arrived.set)

    def put_now(self, update: Update) -> None:
        """Put a run's first events; called from the event loop, which must not wait. The number of runs bounds them."""
        self._steps.append(([update], False))
        self._arrived.set()

    def close(self) -> None:
        """Take no more: once empty, `take` returns `[]`."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> list[Update]:
        """Wait for events, then take all of them, merged to one update for each run."""
        while not self._steps and not self._closed:
            self._arrived.clear()
            self._wanted = True
            if not self._steps:  # what was put just before `_wanted` was set woke nobody
                await self._arrived.wait()
        merged: dict[JobRun, list[Event]] = {}
        put_back = set()
        while self._steps:
            updates, counted = self._steps.popleft()
            for update in updates:
                merged.setdefault(update.run, []).extend(update.events)
                if update.put_back:
                    put_back.add(update.run)
            if counted:
                self._steps_left.release()
        return [Update(run, events, run in put_back) for run, events in merged.items()]
