"""The rest of a worker: its host has it put its models to sleep, which frees their devices, and wakes it when they are
wanted again. It claims nothing meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

from shared.domain.errors import QueueUnavailable
from workers.loop.held_jobs import HeldJobs
from workers.loop.intake import Intake
from workers.protocols import EngineBroken
from workers.runners.base import Runner

log = logging.getLogger(__name__)
LOOK_S = 0.2
LEVEL = 1  # the weights stay in main memory


class Rest:
    """`told` may be called with any message again and again. `tell` tells others whether the worker sleeps."""

    def __init__(
        self, runners: Sequence[Runner], *, held: HeldJobs, intake: Intake, tell: Callable[[bool], Awaitable[None]]
    ) -> None:
        self._runners = runners
        self._held = held
        self._intake = intake
        self._tell = tell
        self._wanted = asyncio.Event()
        self._sleeps = False
        self._hurries = False
        self.asleep = False

    def told(self, *, sleep: bool, now: bool = False) -> None:
        """Sleep after the running jobs, or `now`, with these handed back; or wake."""
        self._sleeps, self._hurries = sleep, now
        self._wanted.set()

    async def run(self) -> None:
        """Do what was told, for ever. Raises EngineBroken if a model does not sleep or wake: only a new process
        helps."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                if self._sleeps and not self.asleep:
                    await self._fall_asleep()
                elif self._sleeps:
                    await self._tell(True)
                else:
                    await self._wake()
            except QueueUnavailable:
                self._wanted.set()
                await asyncio.sleep(LOOK_S)

    async def _fall_asleep(self) -> None:
        """Raises QueueUnavailable, and then nothing is claimed until this is tried again."""
        self._intake.pause()
        await self._intake.settled()
        while self._held and self._sleeps:
            if self._hurries:
                handed_back = list(self._held)
                await self._held.release([held.delivery for held in handed_back])
                for held in handed_back:  # now, since those that could not be handed back go on when it wakes
                    held.stop_computing()
            else:
                await self._held.changed(longest_s=LOOK_S)
        if not self._sleeps:  # it was told to wake meanwhile
            self._intake.resume()
            return
        await self._all(lambda runner: runner.sleep(LEVEL))
        self.asleep = True
        log.info("asleep")
        await self._tell(True)

    async def _wake(self) -> None:
        """Claim again, also if it was only on its way to sleep. Raises QueueUnavailable."""
        if self.asleep:
            await self._all(lambda runner: runner.wake())
            self.asleep = False
            log.info("awake")
        self._intake.resume()
        await self._tell(False)

    async def _all(self, verb: Callable[[Runner], Future[None]]) -> None:
        try:
            await asyncio.gather(*(asyncio.wrap_future(verb(runner)) for runner in self._runners))
        except Exception as error:
            raise EngineBroken(f"a model cannot sleep or wake: {error}") from error
