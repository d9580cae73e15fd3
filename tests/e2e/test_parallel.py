"""A model split over two ranks under torchrun is one worker: its ranks answer, stop and die together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import READY_S, Stack, eventually
from tests.models import random_model

QUESTION: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]


@contextmanager
def split_worker(stack: Stack, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of two ranks: it is ready when yielded, and all ranks are gone afterwards."""
    with log.open("wb") as out:
        launcher = subprocess.Popen(
            [*TORCHRUN, "worker", *arguments], env=stack.environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        eventually("the worker", lambda: launcher.poll() is not None or stack.served() > 0, seconds=READY_S)
        assert launcher.poll() is None, log.read_text()
        yield launcher
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def ranks(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Return the ranks' pids, the worker's first."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, check=False)
    pids = [int(pid) for pid in listed.stdout.split()]
    return sorted(pids, key=lambda pid: int(_environment(pid)["RANK"]))


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def tell(stack: Stack, **options: Any) -> Any:
    return stack.client().chat.completions.create(model=BUILTIN, messages=QUESTION, temperature=0, **options)


@pytest.fixture
def stack(tmp_path: Path, own_redis: EmbeddedRedis) -> Iterator[Stack]:
    made = Stack(tmp_path, own_redis, lease_ms=1000)
    made.api, made.base = made.start_api(made.port)
    yield made
    made.stop()


def test_two_ranks_answer_as_one_and_stop_together(tmp_path: Path, stack: Stack, builtin: Stack) -> None:
    with split_worker(stack, tmp_path / "ranks.log") as launcher:
        assert len(ranks(launcher)) == 2
        answers = [tell(stack).choices[0].message.content for _ in range(2)]
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=20)

    assert answers == [tell(builtin).choices[0].message.content] * 2
    assert stack.served() == 0


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_takes_the_worker_with_it_and_its_streams_go_on_elsewhere(
    tmp_path: Path, stack: Stack, builtin: Stack, victim: int
) -> None:
    with split_worker(stack, tmp_path / "ranks.log") as launcher:
        stream = tell(stack, stream=True)
        said = next(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices[0].delta.content)
        os.kill(ranks(launcher)[victim], signal.SIGKILL)
        assert launcher.wait(timeout=30) != 0
        stack.add_worker("builtin")
        said += "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert said == tell(builtin).choices[0].message.content


def test_what_cannot_be_split_stops_the_start(tmp_path: Path, stack: Stack) -> None:
    random_model(tmp_path / "model", "MambaConfig", {"state_size": 8})
    with (
        pytest.raises(AssertionError, match="has no `tp_plan`"),
        split_worker(stack, tmp_path / "ranks.log", "--model", str(tmp_path / "model")),
    ):
        pass
