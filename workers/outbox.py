"""What the engine's thread has for Redis, handed to the event loop. Bounded: when Redis is away the engine waits."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass

from shared.events import Event
from workers.turn import Turn


@dataclass(frozen=True, slots=True)
class Update:
    """New events of a turn, in order."""

    turn: Turn
    events: list[Event]


class Outbox:
    def __init__(self, loop: asyncio.AbstractEventLoop, *, steps_max: int) -> None:
        self._loop = loop
        self._arrived = asyncio.Event()
        self._room = threading.Semaphore(steps_max)
        self._steps: deque[tuple[list[Update], bool]] = deque()  # and whether they take room
        self._closed = False

    def put(self, updates: list[Update]) -> None:
        """From the engine's thread; waits while `steps_max` steps are not yet taken."""
        self._room.acquire()
        self._steps.append((updates, True))
        self._loop.call_soon_threadsafe(self._arrived.set)

    def put_now(self, update: Update) -> None:
        """From the event loop, which must not wait; a turn's first events, so bounded by the turns."""
        self._steps.append(([update], False))
        self._arrived.set()

    def close(self) -> None:
        """Nothing more will be put: once empty, `take` returns `[]`."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> list[Update]:
        """Everything that is there, merged to one update for each turn; waits for the first."""
        while not self._steps and not self._closed:
            self._arrived.clear()
            await self._arrived.wait()
        merged: dict[Turn, list[Event]] = {}
        while self._steps:
            updates, takes_room = self._steps.popleft()
            for update in updates:
                merged.setdefault(update.turn, []).extend(update.events)
            if takes_room:
                self._room.release()
        return [Update(turn, events) for turn, events in merged.items()]
