"""Models behind a server that the worker starts, with a small server in Python."""

import asyncio
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.driver import Driver
from shared.domain.errors import SettingsError
from shared.process.sockets import free_port
from shared.settings import load_settings
from tests.conftest import ROOT
from tests.e2e.harness import eventually
from workers.engines.command.options import CommandOptions
from workers.engines.command.server import LINES_A_SECOND, CommandServer
from workers.engines.command.upstreams import CommandUpstreams
from workers.loading.loaded import Loaded, load
from workers.loading.model_spec import parse_specs
from workers.protocols import EngineBroken

COMMAND = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(ROOT / 'tests' / 'model_server.py'))} ${{PORT}}"
GONE_S = 10.0


def loaded(run: str = COMMAND, **options: Any) -> Loaded:
    (spec,) = parse_specs(["ours"], engine="command", options={"run": run, **options})
    return asyncio.run(load(spec, load_settings()))


@contextmanager
def driven(run: str = COMMAND, **options: Any) -> Iterator[Driver]:
    driver = Driver(loaded(run, **options), seconds_max=20)
    try:
        yield driver
    finally:
        driver.close()


def options_of(run: str = COMMAND, **more: Any) -> CommandOptions:
    return CommandOptions.model_validate({"run": run, "urls": f"http://127.0.0.1:{free_port()}/v1", **more})


def server_of(options: CommandOptions) -> CommandServer:
    port = int(options.urls[0].url.rpartition(":")[2].removesuffix("/v1"))
    return CommandServer(options, port=port, model="ours")


def is_gone(pid: int) -> bool:
    """Return True for a process that has ended, even if nobody has waited for it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_server_is_the_upstream_of_its_only_model_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    with driven(f"{COMMAND} --child {tmp_path / 'child'}") as driver:
        child = int((tmp_path / "child").read_text())
        parent = psutil.Process(child).ppid()

        answer = driver.start(driver.chat("hello", max_tokens=5)).wait()

        assert answer.said() == "0 1 2 3 4 "
        assert driver.loaded.infos[0].resume == "prefill"  # by how the server lists its model
        assert not is_gone(child)
    assert is_gone(parent)
    eventually("a child that ignores SIGTERM is killed", lambda: is_gone(child))  # a moment after the signal


def test_a_server_is_waited_for_until_it_is_healthy() -> None:
    began = time.monotonic()

    with driven(f"{COMMAND} --late 1") as driver:
        assert time.monotonic() - began >= 1
        assert driver.start(driver.chat("hello", max_tokens=1)).wait().said() == "0 "


def test_a_server_that_ends_before_it_is_ready_refuses_the_start_with_its_last_words() -> None:
    with pytest.raises(SettingsError, match=r"run: the server ended with status 3: there is no file q4\.gguf"):
        loaded(f"{COMMAND} --die 'there is no file q4.gguf'")


def test_a_server_that_is_not_ready_in_time_is_ended() -> None:
    with pytest.raises(SettingsError, match=r"does not answer /health with 200 within 0\.5 s"):
        loaded(f"{COMMAND} --late 100", start_s=0.5)

    assert [each for each in psutil.Process().children() if each.name() == "sh"] == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"run": "no-such-program ${PORT}"}, "there is no program no-such-program"),
        ({"run": "server --port 8080"}, r"it must have \$\{PORT\}"),
        ({"run": "server '${PORT}"}, "cannot be split into words"),
        ({"ready": "health"}, "ENGINE_OPTION ready"),
        ({"urls": "http://localhost:1/v1"}, "the engine command has none"),
        ({"speed": 3}, "the engine command has no option 'speed'"),
    ],
)
def test_options_that_are_wrong_are_refused_by_their_name(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        loaded(**options)


def test_a_server_that_dies_takes_its_worker_with_it() -> None:
    driver = Driver(loaded(), seconds_max=20)
    driver.start(driver.chat("please die"))

    assert driver.eventually(lambda: not driver.runner.alive(step_timeout_s=GONE_S))

    with pytest.raises(ExceptionGroup) as lost:
        driver.close()
    assert lost.value.subgroup(EngineBroken)
    assert "was ended by SIGKILL" in str(lost.value.exceptions)


async def test_a_server_that_is_idle_is_watched_too() -> None:
    options = options_of()
    server = server_of(options)
    upstreams = CommandUpstreams(server, options, model="ours", redis_url="redis://127.0.0.1:9/0")
    try:
        await upstreams.open()
        os.kill(server.pid, signal.SIGKILL)

        with pytest.raises(EngineBroken, match=r"was ended by SIGKILL"):
            async with asyncio.timeout(GONE_S):
                await upstreams.watch()
    finally:
        await upstreams.close()
        server.stop()


async def test_a_server_that_is_unhealthy_for_too_long_is_given_up() -> None:
    options = options_of(health_s=0.2)
    server = server_of(options)
    upstreams = CommandUpstreams(server, options, model="ours", redis_url="redis://127.0.0.1:9/0")
    try:
        await upstreams.open()
        url = options.urls[0].url.replace("/v1", "/sick")
        await asyncio.to_thread(urllib.request.urlopen, urllib.request.Request(url, data=b"{}"))

        with pytest.raises(EngineBroken, match=r"does not answer /health with 200 any more"):
            async with asyncio.timeout(GONE_S):
                await upstreams.watch()
    finally:
        await upstreams.close()
        server.stop()


def test_a_killed_worker_leaves_no_server_behind() -> None:
    script = f"""
import sys
from workers.engines.command.options import CommandOptions
from workers.engines.command.server import CommandServer
options = CommandOptions(run={COMMAND!r}, urls="http://127.0.0.1:1/v1")
server = CommandServer(options, port={free_port()}, model="ours")
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, **pipes)
    assert worker.stdin
    assert worker.stdout
    server = int(worker.stdout.readline())
    assert not is_gone(server)

    worker.kill()
    worker.wait()
    worker.stdin.close()
    worker.stdout.close()

    eventually("the server is gone", lambda: is_gone(server))


def test_the_server_s_output_is_logged_up_to_a_rate(caplog: pytest.LogCaptureFixture) -> None:
    options = options_of(f"{COMMAND} --chatty")
    server = server_of(options)
    with caplog.at_level(logging.INFO):
        server.start()
        eventually("the server is ready", server.is_ready)
        server.stop()

    lines = [record.line for record in caplog.records if record.message == "a server says"]  # type: ignore[attr-defined]
    assert lines[0] == "line 0"
    assert LINES_A_SECOND <= len(lines) <= 3 * LINES_A_SECOND  # two seconds at most were begun, and requests are lines
