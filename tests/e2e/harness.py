"""Starts real processes for end-to-end tests: Redis, the API and workers, each on a free port, each killable."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import redis

from cli.embedded_redis import EmbeddedRedis, find_binary
from tests.ports import free_port

READY_S = 60.0


def eventually(what: str, truth: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Wait for the first true result and return it. Processes give no event to wait for, so this polls: every 10 ms at
    first, then every 2 % of what has passed, since a look may cost what it waits for as much as a request."""
    wait, began = threading.Event(), time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if answer := truth():
            return answer
        wait.wait(min(0.01 + 0.02 * passed, 0.1))
    raise AssertionError(f"not within {seconds} s: {what}")


class Process:
    """A process `penstock ARGUMENTS` with its log in a file."""

    def __init__(self, arguments: list[str], *, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "cli", *arguments],
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def terminate(self) -> None:
        self.popen.terminate()

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(timeout=20)
        finally:
            self.kill()


class Stack:
    """A whole Penstock. The settings are PENSTOCK_ variables without their prefix."""

    def __init__(
        self, folder: Path, server: EmbeddedRedis, *, adapters: Sequence[str] = (), **settings: object
    ) -> None:
        self._folder = folder
        self._adapters = [f"--adapter={adapter}" for adapter in adapters]
        self.server = server
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        usual = {"redis_url": server.url, "port": self.port, "heartbeat_ms": 300, "lease_ms": 1000}
        shared = {**usual, "files": folder / "files", **settings}
        self._environment = {f"PENSTOCK_{name.upper()}": str(value) for name, value in shared.items()}
        self._environment |= {"OMP_NUM_THREADS": "1"}
        self.workers: list[Process] = []
        self.api: Process | None = None
        self._apis: list[Process] = []
        self.redis = redis.Redis.from_url(server.url)
        self._clients: list[openai.OpenAI] = []
        self._count = 0

    def start(self, *models: str, workers: int = 1) -> None:
        self.redis.flushall()
        self.api = self._launch_api(self.port)
        for _ in range(workers):
            self.add_worker(*models)
        _wait_ready(self.api, self.port)
        self.wait_ready(workers)

    def start_api(self, port: int = 0) -> tuple[Process, str]:
        """Start another API; return it and its URL."""
        port = port or free_port()
        api = self._launch_api(port)
        return api, _wait_ready(api, port)

    def _launch_api(self, port: int) -> Process:
        log = self._folder / f"api-{port}.log"
        self._apis.append(Process(["api", f"--port={port}"], environment=self._environment, log=log))
        return self._apis[-1]

    def add_worker(self, *models: str, options: Sequence[str] = (), **settings: object) -> Process:
        """Start a worker with further options of its command line and settings of its own."""
        self._count += 1
        arguments = ["worker", *[f"--model={model}" for model in models], *self._adapters, *options]
        log = self._folder / f"worker-{self._count}.log"
        own = {f"PENSTOCK_{name.upper()}": str(value) for name, value in settings.items()}
        self.workers.append(Process(arguments, environment=self._environment | own, log=log))
        return self.workers[-1]

    def wait_ready(self, workers: int = 1, *, seconds: float = READY_S) -> None:
        eventually("workers ready", lambda: self._workers_alive() >= workers, seconds=seconds)

    def stop(self) -> None:
        processes = [*self.workers, *self._apis]
        for process in processes:  # stop all of them at once, then wait for each
            process.terminate()
        for process in processes:
            process.stop()
        for client in self._clients:
            client.close()
        self.redis.close()

    def client(self, **options: Any) -> openai.OpenAI:
        """Return an openai client that is closed with the stack."""
        usual: dict[str, Any] = {"base_url": f"{self.base}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}
        client = openai.OpenAI(**(usual | options))
        self._clients.append(client)
        return client

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.base}/v1/chat/completions", json=body, timeout=60, **options)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the stack's processes."""
        return {**os.environ, **self._environment}

    def served(self) -> int:
        """Count the workers of the first model that the API lists; 0 before there is a model."""
        listed = httpx.get(f"{self.base}/v1/models").json()["data"]
        return int(listed[0]["workers"]) if listed else 0

    def running(self) -> int:
        """Count the sequences in all engines by the workers' metrics."""
        return int(sum(metric(url, "penstock_running_sequences") for url in self.worker_urls()))

    def worker_running(self, process: Process) -> bool:
        """Return True if this worker runs a job."""
        name = self._name_of(process)
        return bool(name and self.redis.hget(f"rq:worker:{name}", "state") == b"busy")

    def restart_redis(self, *, down_s: float) -> None:
        """Kill Redis, then start it again with the same data on the same port."""
        self.server.kill()
        threading.Event().wait(down_s)
        self.server.start()

    def _workers_alive(self) -> int:
        for worker in self.workers:
            assert worker.popen.poll() != 2, worker.log.read_text()
        pids = {str(worker.popen.pid).encode() for worker in self.workers if worker.popen.poll() is None}
        records: Any = [self.redis.hget(key, "pid") for key in self.redis.scan_iter("rq:worker:*")]
        return len(pids & set(records))

    def worker_urls(self) -> list[str]:
        urls: Any = [self.redis.hget(key, "url") for key in self.redis.scan_iter("rq:worker:*")]
        return [url.decode() for url in urls if url]

    def _name_of(self, process: Process) -> str | None:
        for key in self.redis.scan_iter("rq:worker:*"):
            pid: Any = self.redis.hget(key, "pid")
            if pid and int(pid) == process.popen.pid:
                return str(key.decode()).removeprefix("rq:worker:")
        return None


def _wait_ready(api: Process, port: int) -> str:
    """Wait until the process serves; return its URL."""
    base = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert api.popen.poll() is None, api.log.read_text()
        try:
            return _listens(port) and httpx.get(f"{base}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    eventually("API ready", ready, seconds=READY_S)
    return base


def _listens(port: int) -> bool:
    """Return True if the port accepts connections; this costs a starting process next to nothing."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def metric(base: str, name: str) -> float:
    """Sum a process's metric over all labels; a dead process counts as 0."""
    try:
        page = httpx.get(f"{base}/metrics", timeout=5).text
    except httpx.TransportError:
        return 0
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def running_stack(
    folder: Path, server: EmbeddedRedis, *models: str, workers: int = 1, **settings: Any
) -> Iterator[Stack]:
    stack = Stack(folder, server, **settings)
    try:
        stack.start(*models, workers=workers)
        yield stack
    finally:
        stack.stop()


@contextmanager
def standalone_stack(folder: Path, *models: str, workers: int = 1, **settings: Any) -> Iterator[Stack]:
    """Start a stack with a Redis of its own: stacks that share one would serve each other's jobs."""
    server = EmbeddedRedis(folder / "redis", binary=find_binary(), port=free_port())
    server.start()
    try:
        with running_stack(folder, server, *models, workers=workers, **settings) as stack:
            yield stack
    finally:
        server.stop()


def text_of(stream: Any) -> str:
    """Join the text of a chat stream with one choice."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
