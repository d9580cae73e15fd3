"""Real processes to measure: Redis, one API process, workers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from cli.embedded_redis import EmbeddedRedis, free_port

READY_S = 60


class House:
    """Settings are PENSTOCK_ variables, `PENSTOCK_LOG_LEVEL` is WARNING unless given."""

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
        """Ready when it is returned. Raises TimeoutError."""
        started = self.spawn("worker", *arguments, **environment)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                if any(model["workers"] for model in httpx.get(f"{self.base}/v1/models").json()["data"]):
                    return started
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"the worker did not start: {(self._folder / 'worker.log').read_text()[-2000:]}")

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
