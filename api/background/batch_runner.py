"""Takes over batches that no process runs. An API process holds the lease of each batch that it runs; when it stops or
dies, another process takes the lease."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from api.background.batch_run import LOOK_S, BatchRun
from api.serving.services import Services
from api.stores.batches import Batch, Lease, LeaseLost, to_work_on
from shared.domain.errors import QueueUnavailable
from shared.process.tasks import end

log = logging.getLogger(__name__)
RUNNING_MAX = 100  # in one process, over all tenants
PAUSE_MAX_S = 60.0


class BatchRunner:
    """Runs the batches of this process. `at_once` bounds the lines of one batch that are jobs."""

    def __init__(
        self, services: Services, *, folder: Path, at_once: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._services = services
        self._store = services.batches
        self._new_run = partial(BatchRun, services, folder=folder, at_once=at_once, clock=clock)
        self._clock = clock
        self._known: dict[str, Batch] = {}  # as first read: tenant and window never change
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, _Failed] = {}

    async def run(self) -> None:
        """Run batches for ever; when cancelled, leave them to other processes."""
        try:
            while True:
                try:
                    await self._pick_up()
                    await self._services.files.sweep()
                except QueueUnavailable as error:
                    log.warning("batches wait for redis", extra={"error": str(error)})
                except Exception:
                    log.exception("batches were not looked at")
                await asyncio.sleep(LOOK_S)
        finally:
            await end(list(self._running.values()))

    async def _pick_up(self) -> None:
        await self._learn()
        cancelled = await self._store.to_cancel(list(self._known))
        at_once = self._services.settings.batches_at_once
        wanted = to_work_on(self._known.values(), at_once=at_once, now_s=self._clock(), cancelled=cancelled)
        for batch_id in wanted:
            if len(self._running) >= RUNNING_MAX:
                return
            if batch_id in self._running or (batch_id not in cancelled and self._pauses(batch_id)):
                continue
            if lease := await self._store.claim(batch_id):
                task = asyncio.create_task(self._work(lease))
                self._running[batch_id] = task
                task.add_done_callback(partial(self._left, batch_id))

    async def _learn(self) -> None:
        """Read the records of the batches that have not ended, each once."""
        ids = await self._store.open()
        found = await self._store.get_many([batch_id for batch_id in ids if batch_id not in self._known])
        known = self._known | {batch.id: batch for batch in found}
        self._known = {batch_id: known[batch_id] for batch_id in ids if batch_id in known}
        self._failed = {batch_id: failed for batch_id, failed in self._failed.items() if batch_id in self._known}
        for batch_id in set(ids) - self._known.keys():
            await self._store.close_gone(batch_id)

    def _pauses(self, batch_id: str) -> bool:
        return batch_id in self._failed and self._clock() < self._failed[batch_id].until_s

    def _left(self, batch_id: str, _: asyncio.Task[None]) -> None:
        del self._running[batch_id]

    async def _work(self, lease: Lease) -> None:
        try:
            for batch in await self._store.get_many([lease.batch_id]):
                if not batch.status.ended:
                    await self._try(self._new_run(batch, lease), lease.batch_id)
        except (QueueUnavailable, LeaseLost) as error:
            log.warning("a batch waits", extra={"batch": lease.batch_id, "error": repr(error)})
        except Exception:
            log.exception("a batch can neither go on nor end", extra={"batch": lease.batch_id})
        finally:
            with suppress(QueueUnavailable, LeaseLost):
                await self._store.release(lease)

    async def _try(self, run: BatchRun, batch_id: str) -> None:
        """Run a batch; after an error, retry with growing pauses until the batch is cancelled or expires."""
        try:
            await run.run()
        except (QueueUnavailable, LeaseLost):
            raise
        except Exception:
            log.exception("a batch failed", extra={"batch": batch_id})
            times = self._failed[batch_id].times + 1 if batch_id in self._failed else 1
            pause_s = min(LOOK_S * 2**times, PAUSE_MAX_S)
            self._failed[batch_id] = _Failed(times=times, until_s=self._clock() + pause_s)
            await run.end_bare()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    times: int
    until_s: float
