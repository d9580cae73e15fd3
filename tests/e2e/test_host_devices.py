"""A host gives each worker a device of its own; one that can sleep leaves it to another model, and comes back."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.domain.hosting import HostedState, OrderVerb
from tests.e2e.harness import eventually
from tests.e2e.test_faults import Reader
from tests.e2e.test_host import LOAD_S, HostedStack

# A worker has 30,000 MiB of its device, and 1,000 when it sleeps.
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) for device in {devices}; do echo "$device, GPU-$device, 40000, 0"; done ;;
  *) for file in {folder}/host/workers/*.json; do
       grep -q '"rest": ""' $file && used=30000 || used=1000
       sed -n "s/.*\\"pid\\": \\([0-9]*\\).*/GPU-0, \\1, $used/p" $file; echo
     done ;;
esac
"""
FILE = """
[host]
memory = "200GiB"
[defaults]
engine = "scripted"
scripted_tokens = 100000
scripted_step_ms = 20
[models.a]
options = {options}
[models.b]
options = {options}
"""
Start = Callable[[str, str], None]


@pytest.fixture
def hosted(tmp_path: Path, own_redis: EmbeddedRedis) -> Iterator[HostedStack]:
    running = HostedStack(tmp_path, own_redis)
    yield running
    running.stop()


@pytest.fixture
def start(hosted: HostedStack, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return what starts it on a machine that has these devices, of 40,000 MiB each, as its nvidia-smi says."""

    def started(options: str, devices: str) -> None:
        program = hosted.folder / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(SMI.format(devices=devices, folder=hosted.folder))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        hosted.start(FILE.format(options=options))

    return started


def visible(hosted: HostedStack) -> dict[str, str]:
    return {name: psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for name, pid in hosted.pids().items()}


def test_each_worker_sees_the_devices_that_it_was_given(hosted: HostedStack, start: Start) -> None:
    start("{devices = 1}", "0 1")

    assert hosted.ask("a").status_code == 200
    assert hosted.ask("b").status_code == 200

    assert sorted(visible(hosted).values()) == ["0", "1"]


def test_a_model_that_can_sleep_leaves_its_device_and_its_answer_goes_on_when_it_wakes(
    hosted: HostedStack, start: Start
) -> None:
    start("{devices = 1, sleeps = true}", "0")
    assert hosted.ask("b").status_code == 200  # what it takes is known from now on
    expected = hosted.text("a", "long", 100)
    reader = Reader(hosted.stack, "a", "long", max_tokens=100)
    reader.start()
    assert reader.started.wait(LOAD_S)

    assert hosted.order(OrderVerb.LOAD, "b") == "done"
    asleep = eventually("a sleeps", lambda: hosted.is_in("a", HostedState.ASLEEP))
    assert 1000 * 2**20 < asleep.memory_bytes < 2000 * 2**20
    assert hosted.ask("b").status_code == 200
    before = hosted.pids()
    assert hosted.order(OrderVerb.LOAD, "a") == "done"
    reader.join()

    assert (reader.error, reader.finish, reader.text) == (None, "length", expected)
    assert hosted.pids() == before  # both at once
    eventually("b sleeps", lambda: hosted.is_in("b", HostedState.ASLEEP))
    learnt = json.loads((hosted.folder / "host" / "learnt.json").read_text())
    assert learnt["a"]["asleep_device_bytes"] == 1000 * 2**20
    assert learnt["a"]["wake_s"] > 0


def test_a_sleeping_worker_ends_when_it_is_told_to(hosted: HostedStack, start: Start) -> None:
    start("{devices = 1, sleeps = true}", "0")
    assert hosted.ask("b").status_code == 200
    assert hosted.ask("a").status_code == 200
    assert hosted.order(OrderVerb.LOAD, "b") == "done"
    eventually("a sleeps", lambda: hosted.is_in("a", HostedState.ASLEEP))

    assert hosted.order(OrderVerb.UNLOAD, "a") == "done"

    assert hosted.is_in("a", HostedState.CONFIGURED)
    assert [name[0] for name in hosted.pids()] == ["b"]
