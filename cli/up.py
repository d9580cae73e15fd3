"""`penstock up`: Redis, the API and the workers of one machine in one command, ended together by Ctrl-C."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import httpx
import redis

from api.http.auth import keys_required
from cli.child import Child, penstock
from cli.data_folder import DataFolder
from cli.embedded_redis import LEAVE_S, EmbeddedRedis, free_port
from cli.private_files import UMASK
from cli.supervisor import Supervisor
from cli.terminal import echo
from cli.welcome import Welcome
from shared.domain.errors import QueueUnavailable
from shared.process.sockets import listen
from shared.redis import keys
from shared.redis.client import connect, translated
from shared.redis.health import require_healthy
from shared.settings import Settings
from workers.model_loading import parse_specs

STOP_S = 5.0
APPENDFSYNC = {"fast": "everysec", "safe": "always", "durable": "always"}
ASK_S = 2.0
LOAD_S = 4 * 3600.0  # for models to be fetched and loaded, and for Redis to load its data
CHILD_REDIS_WAIT_S = 3600.0  # longer than any pause between two lives of the embedded one
Answer = TypeVar("Answer")


def up(
    models: Sequence[str],
    adapters: Sequence[str],
    *,
    workers: int,
    data: Path,
    redis_url: str | None,
    settings: Settings,
) -> None:
    """Run until Ctrl-C or SIGTERM. Raises SettingsError, before anything runs, for what cannot work."""
    specs = parse_specs(models, adapters)
    names = [name for spec in specs for name in (spec.name, *dict(spec.adapters))]
    asked = [*[f"--model={text}" for text in models], *[f"--adapter={text}" for text in adapters]]
    settings = settings.model_copy(update={"port": settings.port or free_port()})
    folder = DataFolder(data)
    stopping = _stopped_by_signals()
    with folder.held(url=f"{base_url(settings)}/v1"):
        listen(settings.host, settings.port, setting="PORT").close()
        supervisor = Supervisor(stopping)
        try:
            url = redis_url or _start_redis(supervisor, folder, settings)
            settings = settings.model_copy(update={"redis_url": url})
            if not supervisor.wait_for(partial(_unfit, settings), bound_s=settings.redis_wait_s):
                return
            folder.note_redis(url)
            hands = _start_processes(supervisor, asked, workers, folder, settings)
            loading = f"Loading    {', '.join(names)} in {workers} worker{'' if workers == 1 else 's'}"
            echo(loading if workers else "Starting   the API, without a worker")
            began = time.monotonic()
            if supervisor.wait_for(partial(_missing, settings, hands, names), bound_s=LOAD_S):
                echo(f"Ready      after {time.monotonic() - began:.1f} s")
                echo(Welcome(base_url(settings), names[0], asked, workers, folder, url, keys_required(settings)))
            supervisor.run()
        finally:
            supervisor.stop()


def _stopped_by_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopping.set()

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    return stopping


def _start_redis(supervisor: Supervisor, folder: DataFolder, settings: Settings) -> str:
    """Its URL, once it has loaded its data."""
    server = EmbeddedRedis(folder.redis, appendfsync=APPENDFSYNC[settings.durability])
    echo(f"Redis      {server.url}  (embedded, data in {folder.redis})")

    def missing() -> list[str]:
        try:
            return [] if server.answers() else ["Redis loads its data"]
        except redis.RedisError:
            return [f"Redis does not answer (see {server.log})"]

    supervisor.start(Child("Redis", server.launch, log=server.log), stop_s=LEAVE_S)
    supervisor.wait_for(missing, bound_s=LOAD_S)
    return server.url


def _unfit(settings: Settings) -> list[str]:
    """Why Redis cannot be used now. Raises SettingsError for one that would lose jobs."""

    async def examine() -> None:
        client = connect(settings.redis_url)
        try:
            await require_healthy(client, settings)
        finally:
            await client.aclose()

    try:
        _asked(examine())
    except QueueUnavailable as error:
        return [str(error)]
    return []


def _start_processes(
    supervisor: Supervisor, asked: Sequence[str], workers: int, folder: DataFolder, settings: Settings
) -> list[Child]:
    """Start the API and the workers. The workers."""
    threads = max(1, (os.cpu_count() or 1) // max(workers, 1))
    shared = {
        "PENSTOCK_REDIS_URL": settings.redis_url,
        "PENSTOCK_REDIS_WAIT_S": str(max(settings.redis_wait_s, CHILD_REDIS_WAIT_S)),
        "PENSTOCK_FILES": settings.files if "files" in settings.model_fields_set else str(folder.files),
        "PENSTOCK_DRAIN_S": str(min(settings.drain_s, STOP_S - 2)),
        "PENSTOCK_HOST": settings.host,
        "PENSTOCK_PORT": str(settings.port),
    }
    threaded = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}

    def child(name: str, arguments: Sequence[str], more: dict[str, str], umask: int) -> Child:
        log = folder.logs / f"{name.replace(' ', '-')}.log"
        return Child(name, penstock(arguments, environment=shared | more, log=log, umask=umask), log=log)

    api = child("api", ["api"], {}, UMASK)
    # What workers fetch from a hub is for other users of its cache, too: their files keep the usual mode.
    hands = [child(f"worker {n}", ["worker", *asked], threaded, -1) for n in range(1, workers + 1)]
    supervisor.start(api, *hands, stop_s=STOP_S)
    return hands


def _missing(settings: Settings, hands: Sequence[Child], names: Sequence[str]) -> list[str]:
    """Who does not serve yet. None of the questions needs a key."""
    lacking = []
    try:
        answer = httpx.get(f"{base_url(settings)}/health/ready", timeout=ASK_S, trust_env=False)
        if not answer.is_success:
            lacking.append(f"the API is not ready: {answer.text[:200]}")
    except httpx.HTTPError:
        lacking.append(f"the API does not answer at {base_url(settings)}")
    try:
        pids, announced = _asked(_at_work(settings.redis_url, names))
    except QueueUnavailable as error:
        return [*lacking, str(error)]
    lacking += [f"{hand.name} is not ready (see {hand.log})" for hand in hands if hand.pid not in pids]
    return lacking if lacking or announced or not hands else ["the models are not listed"]


def _asked(asking: Coroutine[Any, Any, Answer]) -> Answer:
    """Its answer, or QueueUnavailable before whoever waits for Ctrl-C grows impatient."""

    async def bounded() -> Answer:
        async with asyncio.timeout(ASK_S):
            return await asking

    try:
        return asyncio.run(bounded())
    except TimeoutError as error:
        raise QueueUnavailable(f"Redis does not answer within {ASK_S:g} s") from error


async def _at_work(url: str, names: Sequence[str]) -> tuple[set[int], bool]:
    """The workers that serve on this machine, by process, and whether all models have been announced."""
    client = connect(url)
    try:
        with translated():
            members: Any = await client.smembers(keys.WORKERS)
            records: Any = [await client.hmget(member, "hostname", "pid") for member in members]
            announced = await client.exists(*[keys.model(name) for name in names])
    finally:
        await client.aclose()
    here = socket.gethostname().encode()
    return {int(pid) for host, pid in records if pid and host == here}, announced == len(names)


def base_url(settings: Settings) -> str:
    """Where this machine reaches the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
