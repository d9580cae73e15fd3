"""A worker that is started while others end takes no memory before they have gone."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workers.process.succession import AFTER, LEFT_FILE, after, tell_successors, wait_for_predecessors

LONG_S = 60.0


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its input does."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_it_waits_for_the_processes_that_it_is_given(other: "subprocess.Popen[bytes]") -> None:
    environment = after([(other.pid, psutil.Process(other.pid).create_time())])
    waited = threading.Thread(target=wait_for_predecessors, args=(environment, LONG_S))
    waited.start()

    waited.join(timeout=0.2)
    assert waited.is_alive()

    other.kill()
    other.wait()
    waited.join(timeout=LONG_S / 2)
    assert not waited.is_alive()


def test_it_waits_neither_for_a_later_process_of_the_same_id_nor_for_one_that_has_gone(
    other: "subprocess.Popen[bytes]",
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    created_s = psutil.Process(other.pid).create_time()

    wait_for_predecessors(after([(other.pid, created_s - 100), (gone.pid, created_s)]), longest_s=float("inf"))
    wait_for_predecessors(after([]), longest_s=float("inf"))


def test_its_wait_is_bounded(other: "subprocess.Popen[bytes]") -> None:
    wait_for_predecessors({AFTER: f"{other.pid}:{psutil.Process(other.pid).create_time()}"}, longest_s=0.01)

    assert other.poll() is None


def test_one_that_no_host_has_started_tells_nobody(tmp_path: Path) -> None:
    tell_successors({})
    tell_successors({LEFT_FILE: str(tmp_path / "m-1.left")})

    assert (tmp_path / "m-1.left").exists()
