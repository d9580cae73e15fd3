"""A host process: read the models file, hold the machine, serve, leave."""

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from shared.domain.errors import QueueUnavailable
from shared.domain.hosting import Host
from shared.process.private_files import LockFile, private_folder, write_private
from shared.process.tasks import end
from shared.redis.client import connect
from shared.redis.health import patiently, require_healthy
from shared.settings import Settings
from workers.host.file_watch import FileWatch
from workers.host.fleet import Fleet
from workers.host.host_loop import HostLoop, MachineLost
from workers.host.redis_side import RedisSide
from workers.host.remembered import Memory
from workers.host.turns import Rules

log = logging.getLogger(__name__)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STANDBY_S = 0.5
LAST_ID = "host.id"


async def serve(models_file: Path, folder: Path, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, which end the workers, too; kill -9 leaves them to the next host. SIGHUP has the
    file read again. Raises SettingsError if it cannot start."""
    watch = FileWatch(models_file)
    private_folder(folder, option="--data")
    private_folder(folder / "workers", option="--data")
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stopping.set)
    client = connect(settings.redis_url)
    host = Host(id=_new_id(), hostname=socket.gethostname(), machine=machine_id(), pid=os.getpid())
    redis_side = RedisSide(client, host.id, settings)
    try:
        for warning in await patiently(partial(require_healthy, client, settings), settings):
            log.warning(warning)
        async with _machine_held(folder, host, redis_side, stopping) as held:
            if held:
                await _run(_loop(host, watch, folder, redis_side, settings), redis_side, stopping, settings)
    finally:
        await client.aclose()


def _loop(host: Host, watch: FileWatch, folder: Path, redis_side: RedisSide, settings: Settings) -> HostLoop:
    memory = Memory.read(folder / "learnt.json")
    environment = {"PENSTOCK_REDIS_URL": settings.redis_url, "PENSTOCK_WORKER_PORT": "0"}
    fleet = Fleet(folder / "workers", memory, environment)
    return HostLoop(
        host, watch=watch, fleet=fleet, memory=memory, redis_side=redis_side, rules=Rules(), engine=settings.engine
    )


async def _run(loop: HostLoop, redis_side: RedisSide, stopping: asyncio.Event, settings: Settings) -> None:
    """Supervise until told to stop; then end the workers."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, loop.reread)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_supervise(loop, stopping)), tasks.create_task(_follow(redis_side, loop))]
        await stopping.wait()
        await end(running)
    await loop.stop_all(settings.drain_s)
    log.info("stopped")


async def _supervise(loop: HostLoop, stopping: asyncio.Event) -> None:
    """Run the loop. A host that was silent for so long that another one holds its machine now ends its workers."""
    try:
        await loop.run()
    except MachineLost as error:
        log.error("another host holds this machine now", extra={"holder": str(error)})
        stopping.set()


async def _follow(redis_side: RedisSide, loop: HostLoop) -> None:
    async for _ in redis_side.wanted():
        loop.wake()


@asynccontextmanager
async def _machine_held(
    folder: Path, host: Host, redis_side: RedisSide, stopping: asyncio.Event
) -> AsyncIterator[bool]:
    """Wait until no other host has the folder or the machine. Yields False if a stop was asked for first."""
    lock = LockFile(folder / "host.lock")
    try:
        if not lock.take():
            log.info("standing by", extra={"folder": str(folder), "holder": lock.holder()})
        while not stopping.is_set() and not lock.take():
            await _pause(stopping)
        if stopping.is_set():
            yield False
            return
        lock.note(f"process {os.getpid()}")
        await _succeed(folder, host, redis_side)
        if not await _holds(redis_side, host):
            with suppress(QueueUnavailable):
                holder = await redis_side.holder(host.machine)
                log.info("standing by", extra={"machine": host.machine, "holder": holder})
        while not stopping.is_set() and not await _holds(redis_side, host):
            await _pause(stopping)
        yield not stopping.is_set()
        with suppress(QueueUnavailable):  # its records expire by themselves
            await redis_side.leave(host.machine)
    finally:
        lock.close()


async def _holds(redis_side: RedisSide, host: Host) -> bool:
    """Return True if this host holds the machine now. Nobody can tell while Redis is away, so it waits."""
    try:
        return await redis_side.hold(host.machine)
    except QueueUnavailable:
        return False


async def _succeed(folder: Path, host: Host, redis_side: RedisSide) -> None:
    """Take the place of the last host of this folder, whose records would hold the machine until they expire."""
    last = folder / LAST_ID
    if last.exists():
        with suppress(QueueUnavailable):
            await redis_side.forget_host(last.read_text().strip(), host.machine)
    write_private(last, host.id)


async def _pause(stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(STANDBY_S):
            await stopping.wait()


def _new_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def machine_id() -> str:
    """Return what tells this start of this machine from all others, and is the same in its containers."""
    with suppress(OSError):
        return BOOT_ID.read_text().strip()
    return f"{socket.gethostname()}-{psutil.boot_time():.0f}"
