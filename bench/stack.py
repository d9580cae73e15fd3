"""Real processes to measure: Redis, one API process and workers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from cli.embedded_redis import EmbeddedRedis
from shared.process.sockets import free_port

READY_S = 60
LOOK_S = 0.1


def until(truth: Callable[[], bool], *, seconds: float = READY_S) -> bool:
    """Wait until `truth` holds. Return False if it does not in time."""
    deadline = time.monotonic() + seconds
    while not (true := truth()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return true


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


class Stack:
    """Redis, an API process and workers; the settings are PENSTOCK_ variables, with WARNING as the log level."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.redis = EmbeddedRedis(folder / "redis", port=free_port())
        self.redis.start()
        self._environment = {
            "PENSTOCK_REDIS_URL": self.redis.url,
            "PENSTOCK_PORT": str(self.port),
            "PENSTOCK_LOG_LEVEL": "WARNING",
            **environment,
        }
        self.api = self.spawn("api")

    def worker(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it serves. Raises TimeoutError."""
        started = self.spawn("worker", *arguments, **environment)
        self.staffed(1)
        return started

    def staffed(self, count: int, *, seconds: float = READY_S) -> None:
        """Wait until `count` workers serve. Raises TimeoutError."""
        if not until(lambda: self.serving() >= count, seconds=seconds):
            log = (self._folder / "worker.log").read_text()[-2000:]
            raise TimeoutError(f"{self.serving()} of {count} workers serve: {log}")

    def serving(self) -> int:
        """The workers of the model that has most."""
        try:
            listed = httpx.get(f"{self.base}/v1/models").json()["data"]
        except httpx.TransportError:
            return 0
        return max((model["workers"] for model in listed), default=0)

    def stop(self) -> None:
        self.api.terminate()
        self.api.wait()
        self.redis.stop()

    def spawn(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{arguments[0]}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            env={**os.environ, **self._environment, **environment},
            stdout=log,
            stderr=log,
        )
