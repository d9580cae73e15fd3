"""All that a host reads and writes in Redis. Every method raises QueueUnavailable if Redis is away."""

import socket
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from redis.asyncio import Redis

from shared.catalog.demand import DemandReader, together
from shared.catalog.hosting import Hosting
from shared.catalog.workloads import Workload, WorkloadReader
from shared.domain.hosting import Host, HostedModel, Order
from shared.models_file.reading import ModelsFile
from shared.queue.event_channel import RedisChannel
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from shared.redis.client import translated
from shared.settings import Settings
from workers.host.announcement import Announcement
from workers.host.failing import fail_jobs
from workers.host.fleet import is_own
from workers.host.worker_process import WorkerProcess


class RedisSide:
    def __init__(self, client: Redis, host_id: str, settings: Settings) -> None:
        self._redis = client
        self._id = host_id
        self._target_wait_s = settings.target_wait_s
        self._hosting = Hosting(client)
        self._workloads = WorkloadReader(client)
        self._demand = DemandReader(client)
        self._announcement = Announcement(client)
        self._gone: set[str] = set()
        self._channel = RedisChannel(client)
        self._queue = RedisQueue(
            client,
            lease_ms=settings.lease_ms,
            attempts_max=settings.attempts_max,
            job_ttl_s=settings.job_ttl_s,
            failed_ttl_s=settings.failed_ttl_s,
        )

    def wanted(self) -> AsyncIterator[str]:
        """Yield the names of models for which something may be to do, as that becomes so."""
        return self._channel.wanted()

    async def orders(self) -> list[Order]:
        return await self._hosting.take_orders(self._id)

    async def report(self, order_id: str, outcome: str) -> None:
        await self._hosting.report(order_id, outcome)

    async def hold(self, machine: str) -> bool:
        return await self._hosting.hold(machine, self._id)

    async def write(self, host: Host, models: Sequence[HostedModel], gone: Collection[str]) -> bool:
        return await self._hosting.write(host, models, gone=gone)

    async def leave(self, machine: str) -> None:
        await self._hosting.leave(self._id, machine)

    async def holder(self, machine: str) -> str:
        return await self._hosting.holder(machine)

    async def forget_host(self, host_id: str, machine: str) -> None:
        await self._hosting.leave(host_id, machine)

    async def workloads(self, names: Sequence[str]) -> dict[str, Workload]:
        return await self._workloads.read(names)

    async def workers_wanted(self, names: Sequence[str]) -> int:
        found = together([await self._demand.read(name) for name in names])
        return found.workers_wanted(self._target_wait_s)

    async def announce(self, file: ModelsFile) -> None:
        """List the models of the file and the names that stand for them, and no longer those that have left it."""
        self._gone |= await self._announcement.write(file)
        while self._gone:
            await self._queue.forget_model(min(self._gone))
            self._gone.discard(min(self._gone))

    async def serves(self, worker: WorkerProcess) -> bool:
        """True once the worker's process has announced itself."""
        return bool(is_own(await self._workers(worker.record.model), worker, socket.gethostname()))

    async def can_sleep(self, worker: WorkerProcess) -> bool:
        """True if the worker can leave its devices while it serves nobody."""
        return b"1" in await self._told(worker, "sleeps")

    async def is_asleep(self, worker: WorkerProcess) -> bool:
        return b"1" in await self._told(worker, "asleep")

    async def tell(self, worker: WorkerProcess, message: str) -> None:
        """Tell a worker SLEEP, SLEEP_NOW or WAKE. It may not hear it: tell it again until it has done so."""
        for key in await self._keys(worker):
            with translated():
                await self._redis.publish(keys.control_channel(key.removeprefix(keys.worker(""))), message)

    async def _told(self, worker: WorkerProcess, field: str) -> list[Any]:
        with translated():
            found: Any = [await self._redis.hget(key, field) for key in await self._keys(worker)]
        return list(found)

    async def _keys(self, worker: WorkerProcess) -> list[str]:
        """Return the worker's record in Redis, also while it sleeps; more, if it began again."""
        with translated():
            members: Any = await self._redis.smembers(keys.WORKERS)
        return [key.decode() for key in is_own(members, worker, socket.gethostname())]

    async def is_busy(self, worker: WorkerProcess) -> bool:
        """True if the worker runs a job, as far as it has told."""
        own = is_own(await self._workers(worker.record.model), worker, socket.gethostname())
        with translated():
            states: Any = [await self._redis.hget(key.decode(), "state") for key in own]
        return b"busy" in states

    async def forget_worker(self, worker: WorkerProcess) -> None:
        """Remove what a process left behind that is gone, so that hosts hear of the next job without a worker."""
        for name in worker.record.names:
            if own := is_own(await self._workers(name), worker, socket.gethostname()):
                with translated():
                    async with self._redis.pipeline(transaction=True) as pipe:
                        pipe.srem(keys.workers_of(name), *own)
                        pipe.srem(keys.WORKERS, *own)
                        pipe.delete(*own)
                        await pipe.execute()

    async def forget_keep_alive(self, model: str) -> None:
        with translated():
            await self._redis.delete(keys.keep_alive(model))

    async def fail_jobs(self, names: Sequence[str], reason: str) -> int:
        return await fail_jobs(self._queue, names, reason, worker=self._id)

    async def _workers(self, model: str) -> Collection[bytes]:
        with translated():
            members: Any = await self._redis.smembers(keys.workers_of(model))
        return list(members)
