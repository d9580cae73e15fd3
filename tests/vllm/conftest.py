"""A stack with a worker of each engine, for the tests of vLLM. They need vLLM's own environment: `make vllm-tests`."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.embedded_redis import EmbeddedRedis, find_binary
from tests.e2e.harness import Process, Stack
from tests.ports import free_port

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make vllm-tests")
with warnings.catch_warnings(action="ignore"):  # imported by a test module, its warnings would be errors
    import vllm.v1.core.sched.async_scheduler  # noqa: F401

MODEL = "penstock-tiny"
LOAD_S = 600.0  # on a busy machine; alone it takes half a minute
VLLM = ["--engine=vllm", "--engine-option=enforce_eager=true"]
# Answers of two engines agree in the same number format alone.
SAME: dict[str, Any] = {"dtype": "float32", "kv_cache_gib": 0.1, "sequences_max": 8}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(2 * LOAD_S))
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # those of vLLM and torch are not ours to mend


class Engines:
    """A stack whose workers are of either engine."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def vllm(self, *models: str, options: Sequence[str] = (), **settings: Any) -> Process:
        """Start a worker of vLLM."""
        return self.stack.add_worker(*models or ("builtin",), options=[*VLLM, *options], **(SAME | settings))

    def own(self, *models: str, options: Sequence[str] = ()) -> Process:
        """Start a worker of our own engine."""
        return self.stack.add_worker(*models or ("builtin",), options=options, **SAME)

    def ready(self, workers: int) -> None:
        self.stack.wait_ready(workers, seconds=LOAD_S)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """An API and Redis without a worker."""
    folder: Path = tmp_path_factory.mktemp("vllm")
    server = EmbeddedRedis(folder / "redis", binary=find_binary(), port=free_port())
    server.start()
    stack = Stack(folder, server, drain_s=1)
    try:
        stack.start(workers=0)
        yield Engines(stack)
    finally:
        stack.stop()
        server.stop()


def descendants(pid: int) -> set[int]:
    """The processes that this one started, and those that they started."""
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}") and not _is_zombie(pid)}


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
