"""`penstock up`: runs Redis, the API and the workers of one machine, and stops them together at Ctrl-C."""

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import redis

from api.http.auth import keys_required
from cli.bounded import ASK_S, run_bounded
from cli.child import Child, penstock
from cli.data_folder import DataFolder
from cli.embedded_redis import LEAVE_S, EmbeddedRedis
from cli.host_news import HostWatch, announce
from cli.supervisor import Supervisor
from cli.terminal import echo
from cli.welcome import Welcome
from shared.domain.errors import QueueUnavailable
from shared.models_file.reading import ModelsFile, read
from shared.process.private_files import UMASK
from shared.process.sockets import free_port, listen
from shared.redis import keys
from shared.redis.client import connect, translated
from shared.redis.health import require_healthy
from shared.settings import Settings
from workers.loading.model_spec import specs_of

STOP_S = 5.0
HOST_STOP_S = STOP_S + 5.0  # its workers drain for as long as others, and it waits for them
APPENDFSYNC = {"fast": "everysec", "safe": "always", "durable": "always"}
LOAD_S = 4 * 3600.0  # the longest time to fetch and load models, and for Redis to load its data
CHILD_REDIS_WAIT_S = 3600.0  # longer than any pause between two starts of the embedded Redis


def up(
    models: Sequence[str],
    adapters: Sequence[str],
    engine_options: Sequence[str],
    *,
    workers: int,
    data: Path,
    redis_url: str | None,
    settings: Settings,
) -> None:
    """Run workers of these models until Ctrl-C or SIGTERM. Raises SettingsError, before anything starts, for settings
    that cannot work."""
    specs = specs_of(models, adapters, engine_options, settings)
    names = tuple(name for spec in specs for name in (spec.name, *dict(spec.adapters)))
    model_options = [
        *[f"--model={text}" for text in models],
        *[f"--adapter={text}" for text in adapters],
        *([f"--engine={settings.engine}"] if settings.engine else []),
        *[f"--engine-option={text}" for text in engine_options],
    ]
    _run(_Plan(names, model_options, workers=workers), data, redis_url, settings)


def up_file(path: Path, *, data: Path, redis_url: str | None, settings: Settings) -> None:
    """Run a host of the models of a file, as `up` runs workers."""
    file = read(path)
    first = file.default or next(iter(file.models))
    names = (first, *(name for name in file.models if name != first))
    _run(_Plan(names, [f"--models={path.absolute()}"], file=file), data, redis_url, settings)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The part that is run beside Redis and the API. `names` are served, the first in the examples; `model_options` say
    it on a command line. With a `file`, a host of its models starts the workers."""

    names: Sequence[str]
    model_options: Sequence[str]
    workers: int = 1
    file: ModelsFile | None = None

    @property
    def awaited(self) -> Sequence[str]:
        """The models that must be announced before everything is ready."""
        return self.names if self.workers and not self.file else []

    @property
    def loading(self) -> str:
        if self.file:
            return f"Starting   a host of {', '.join(self.names)}, as {self.file.path} says"
        if not self.workers:
            return "Starting   the API, without a worker"
        return f"Loading    {', '.join(self.names)} in {self.workers} worker{'' if self.workers == 1 else 's'}"


def _run(plan: _Plan, data: Path, redis_url: str | None, settings: Settings) -> None:
    settings = settings.model_copy(update={"port": settings.port or free_port()})
    folder = DataFolder(data)
    stopping = _stopped_by_signals()
    with folder.held(url=f"{base_url(settings)}/v1"):
        listen(settings.host, settings.port, setting="PORT").close()
        supervisor = Supervisor(stopping)
        try:
            url = redis_url or _start_redis(supervisor, folder, settings)
            settings = settings.model_copy(update={"redis_url": url})
            if not supervisor.wait_for(partial(_redis_problems, settings), bound_s=settings.redis_wait_s):
                return
            folder.note_redis(url)
            folder.note_api(f"{base_url(settings)}/v1")
            if plan.file:
                run_bounded(announce(url, plan.file))
            worker_children = _start_processes(supervisor, plan, folder, settings)
            echo(plan.loading)
            began = time.monotonic()
            host = HostWatch(url, plan.file, worker_children[0]) if plan.file else None
            missing = partial(_not_ready, settings, worker_children, plan.awaited, host)
            if supervisor.wait_for(missing, bound_s=LOAD_S):
                echo(f"Ready      after {time.monotonic() - began:.1f} s{host.still_loading() if host else ''}")
                echo(_welcome(plan, folder, url, settings))
            supervisor.run(host.news if host else tuple)
        finally:
            supervisor.stop()


def _welcome(plan: _Plan, folder: DataFolder, url: str, settings: Settings) -> Welcome:
    about = (base_url(settings), plan.names[0], plan.model_options, plan.workers)
    return Welcome(*about, folder, url, keys_required(settings))


def _stopped_by_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopping.set()

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    return stopping


def _start_redis(supervisor: Supervisor, folder: DataFolder, settings: Settings) -> str:
    """Start the embedded Redis; return its URL once it has loaded its data."""
    server = EmbeddedRedis(folder.redis, appendfsync=APPENDFSYNC[settings.durability])
    echo(f"Redis      {server.url}  (embedded, data in {folder.redis})")

    def missing() -> list[str]:
        try:
            return [] if server.answers() else ["Redis is still loading its data"]
        except redis.RedisError:
            return [f"Redis does not answer (see {server.log})"]

    supervisor.start(Child("Redis", server.launch, log=server.log), stop_s=LEAVE_S)
    supervisor.wait_for(missing, bound_s=LOAD_S)
    return server.url


def _redis_problems(settings: Settings) -> list[str]:
    """Return why Redis cannot be used now. Raises SettingsError if it would lose jobs."""

    async def examine() -> None:
        client = connect(settings.redis_url)
        try:
            await require_healthy(client, settings)
        finally:
            await client.aclose()

    try:
        run_bounded(examine())
    except QueueUnavailable as error:
        return [str(error)]
    return []


def _start_processes(supervisor: Supervisor, plan: _Plan, folder: DataFolder, settings: Settings) -> list[Child]:
    """Start the API, and the workers or their host. Return these."""
    threads = max(1, (os.cpu_count() or 1) // max(plan.workers, 1))
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
    # The hub's cache may be shared with other users, so the files that workers download keep the usual mode.
    if plan.file:
        host = child("host", ["host", *plan.model_options, f"--data={folder.path}"], {}, -1)
        supervisor.start(api, host, stop_s=HOST_STOP_S)
        return [host]
    numbers = range(1, plan.workers + 1)
    worker_children = [child(f"worker {n}", ["worker", *plan.model_options], threaded, -1) for n in numbers]
    supervisor.start(api, *worker_children, stop_s=STOP_S)
    return worker_children


def _not_ready(settings: Settings, workers: Sequence[Child], names: Sequence[str], host: HostWatch | None) -> list[str]:
    """List the parts that do not serve yet. No request here needs a key."""
    problems = []
    try:
        answer = httpx.get(f"{base_url(settings)}/health/ready", timeout=ASK_S, trust_env=False)
        if not answer.is_success:
            problems.append(f"the API is not ready: {answer.text[:200]}")
    except httpx.HTTPError:
        problems.append(f"the API does not answer at {base_url(settings)}")
    try:
        if host:
            return [*problems, *([] if host.is_there() else [f"the host is not ready (see {workers[0].log})"])]
        pids, announced = run_bounded(_serving_workers(settings.redis_url, names))
    except QueueUnavailable as error:
        return [*problems, str(error)]
    problems += [f"{worker.name} is not ready (see {worker.log})" for worker in workers if worker.pid not in pids]
    return problems if problems or announced else ["the models are not listed"]


async def _serving_workers(url: str, names: Sequence[str]) -> tuple[set[int], bool]:
    """Return the process ids of the workers that serve on this machine, and True if every model is announced."""
    client = connect(url)
    try:
        with translated():
            members: Any = await client.smembers(keys.WORKERS)
            records: Any = [await client.hmget(member, "hostname", "pid") for member in members]
            announced = await client.exists(*[keys.model(name) for name in names]) if names else 0
    finally:
        await client.aclose()
    here = socket.gethostname().encode()
    return {int(pid) for host, pid in records if pid and host == here}, announced == len(names)


def base_url(settings: Settings) -> str:
    """Return the URL at which this machine reaches the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
