"""A whole Penstock of real processes (Redis, APIs, workers), each of which may be killed, frozen or replaced."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from bench.chaos.proxy import Proxy
from bench.stack import answers
from cli.embedded_redis import EmbeddedRedis
from shared.process.sockets import free_port

ROOT = Path(__file__).parents[2]
READY_S = 60.0
LOOK_S = 0.1
PASSING = (
    *("rq:worker", "penstock:model:", "penstock:rate:", "penstock:pace:", "penstock:claim:", "penstock:served:"),
    *("penstock:bucket:", "penstock:usage:"),
)
# Runs before a process's own code: a wrong clock, and a count of every token that the engine makes.
SITECUSTOMIZE = """
import os, sys, time
real = time.time
skew_s = float(os.environ.get("CHAOS_SKEW_S", 0))
if skew_s:
    time.time = lambda: real() + skew_s
if os.environ.get("CHAOS_COUNT"):
    sys.path.insert(0, os.environ["CHAOS_CODE"])
    from workers.engines.scripted import ScriptedEngine
    counted = os.open(os.environ["CHAOS_COUNT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    step = ScriptedEngine.step
    def counting(self, batch):
        sampled = step(self, batch)
        os.write(counted, b"%d\\n" % len(sampled))
        return sampled
    ScriptedEngine.step = counting
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """Workers of one engine that serve one model, each of them `places` jobs at a time. `source` is what is loaded as
    this model, if it is not the model's name, and `python` the interpreter that has the engine's packages. `settings`
    are PENSTOCK_ variables without their prefix."""

    model: str
    count: int
    places: int = 16
    engine: str = ""
    source: str = ""
    arguments: tuple[str, ...] = ()
    python: str = sys.executable
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return ["worker", f"--model={self.model}" + (f"={self.source}" if self.source else ""), *self.arguments]

    @property
    def environment(self) -> dict[str, str]:
        return variables({"sequences_max": self.places, **self.settings})


def variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"PENSTOCK_{name.upper()}": str(value) for name, value in settings.items()}


class Process:
    """A process `penstock ARGUMENTS` that runs the packages of the folder `code`."""

    def __init__(
        self,
        arguments: list[str],
        *,
        code: Path,
        environment: Mapping[str, str],
        log: Path,
        python: str = sys.executable,
        group: WorkerGroup | None = None,
    ) -> None:
        self.group = group
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [python, "-m", "cli", *arguments],
                cwd=code,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def send(self, sign: signal.Signals) -> None:
        if self.alive:
            self.popen.send_signal(sign)

    def end(self) -> None:
        self.send(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait()


class Site:
    """`settings` are PENSTOCK_ variables without their prefix. Workers that end are replaced, as a supervisor does,
    unless their group is in `halted`."""

    def __init__(
        self,
        folder: Path,
        code: Path,
        *,
        groups: Sequence[WorkerGroup],
        settings: Mapping[str, object],
        ready_s: float = READY_S,
    ) -> None:
        self.folder = folder
        self.groups = groups
        self.model = groups[0].model
        self.models = list(dict.fromkeys(group.model for group in groups))
        self.workers_max = sum(group.count for group in groups)
        self.halted: set[str] = set()  # models
        self.ready_s = ready_s
        self.redis = EmbeddedRedis(folder / "redis", port=free_port())
        self.proxy = Proxy("127.0.0.1", self.redis.port)
        self.workers: list[Process] = []
        self.apis: list[tuple[Process, str]] = []
        self.code = code
        self._counted = 0
        self.files = folder / "files"
        self._settings = variables({"files": self.files, "webhook_private": True, **settings})
        self._redis_client: redis.Redis | None = None
        self._keeper: asyncio.Task[None] | None = None
        (folder / "skew").mkdir(parents=True, exist_ok=True)
        (folder / "skew" / "sitecustomize.py").write_text(SITECUSTOMIZE)

    async def start(self, *, apis: int = 2) -> None:
        self.redis.start()
        await self.proxy.start()
        for _ in range(apis):
            await self.add_api()
        for group in self.groups:
            for _ in range(group.count):
                self.add_worker(group)
        await self.staffed()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper:
            self._keeper.cancel()
        for process in [*self.workers, *[api for api, _ in self.apis]]:
            process.end()
        await self.proxy.stop()
        self.redis.stop()

    @property
    def client(self) -> redis.Redis:
        """Return a client that reaches Redis without the proxy."""
        if self._redis_client is None:
            self._redis_client = redis.Redis.from_url(
                self.redis.url, decode_responses=True, encoding_errors="replace", socket_timeout=60
            )
        return self._redis_client

    def bases(self) -> list[str]:
        """List the URLs of the live APIs."""
        return [base for api, base in self.apis if api.alive]

    def places(self, model: str) -> int:
        """Return how many jobs the workers of a model run at a time."""
        return sum(group.count * group.places for group in self.groups if group.model == model)

    def live_workers(self, group: WorkerGroup | None = None) -> list[Process]:
        return [worker for worker in self.workers if worker.alive and group in (None, worker.group)]

    def add_worker(self, group: WorkerGroup | None = None, *, environment: Mapping[str, str] | None = None) -> Process:
        group = group or self.groups[0]
        worker = self._spawn(group.command, group.environment | dict(environment or {}), "workers.log", group)
        self.workers.append(worker)
        return worker

    def add_process(self, arguments: list[str], *, log: str) -> Process:
        """Start another process of Penstock, which nobody replaces."""
        return self._spawn(arguments, {}, log)

    async def staffed(self) -> None:
        """Wait until every worker serves, replacements of dead ones included."""
        await self.until(lambda: self.alive_workers() >= self.workers_max, "every worker serves", seconds=self.ready_s)

    async def add_api(self, **environment: str) -> Process:
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        api = self._spawn(["api", f"--port={port}"], environment, "apis.log")
        await self.until(lambda: answers(f"{base}/health/ready"), "API")
        self.apis.append((api, base))
        return api

    def skewed(self, seconds: float) -> dict[str, str]:
        """Return the environment of a process whose clock is wrong by that many seconds."""
        return {"CHAOS_SKEW_S": str(seconds)}

    def count_tokens(self, *, begin: bool = False) -> int:
        """Count the tokens that all scripted engines, dead ones included, have made since the count began."""
        counts = self.folder / "counts"
        total = sum(map(int, counts.read_text().split())) if counts.exists() else 0
        if begin:
            self._counted = total
        return total - self._counted

    def alive_workers(self) -> int:
        with suppress(redis.RedisError):
            return len(self.worker_names())
        return 0

    def worker_names(self) -> set[str]:
        """List the names of the live workers that have registered."""
        pids = {str(worker.pid) for worker in self.live_workers()}
        known = {key: self.client.hget(key, "pid") for key in self.client.scan_iter("rq:worker:*")}
        return {str(key).removeprefix("rq:worker:") for key, pid in known.items() if pid in pids}

    def keys(self) -> set[str]:
        """List the keys in Redis, without those that come and go by themselves or that a refused request may write."""
        return {key for key in map(str, self.client.scan_iter("*", count=1000)) if not key.startswith(PASSING)}

    async def until(self, truth: Any, what: str, *, seconds: float = READY_S) -> None:
        for _ in range(int(seconds / LOOK_S)):
            if await asyncio.to_thread(truth):
                return
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"{what}: not within {seconds:.0f} s; see {self.folder}")

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.workers = self.live_workers()
            for group in self.groups:
                missing = 0 if group.model in self.halted else group.count - len(self.live_workers(group))
                for _ in range(missing):
                    self.add_worker(group)

    def _spawn(
        self, arguments: list[str], environment: Mapping[str, str], log: str, group: WorkerGroup | None = None
    ) -> Process:
        shared = {"PENSTOCK_REDIS_URL": self.proxy.url, "PENSTOCK_LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
        paths = [str(self.folder / "skew"), str(ROOT)]  # the working directory's packages come first
        shared |= {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_CODE": str(self.code)}
        if group and group.model == "scripted":
            shared["CHAOS_COUNT"] = str(self.folder / "counts")
        given = {**shared, **self._settings, **environment}
        python = group.python if group else sys.executable
        return Process(arguments, code=self.code, environment=given, log=self.folder / log, python=python, group=group)
