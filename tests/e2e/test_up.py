"""`penstock up` serves, keeps its processes running, and never harms the data of another one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from cli.embedded_redis import EmbeddedRedis, find_binary
from tests.e2e.harness import eventually
from tests.e2e.test_faults import ask
from tests.ports import free_port

UP_S = 60.0
PASSWORD = "correct-horse"
BODY = {"model": "scripted", "messages": ask("hi"), "max_tokens": 3}


class Up:
    """A `penstock up` in a folder of its own. `program` is the command that starts `penstock`."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = (sys.executable, "-m", "cli"),
        **environment: str,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._out = folder / "up.log"
        with self._out.open("wb") as out:
            self.popen = subprocess.Popen(
                [*program, "up", "--port", str(self.port), *arguments],
                cwd=folder,
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,
                umask=0o022,
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    def ready(self) -> bool:
        assert self.popen.poll() is None, self.said
        return "from openai import OpenAI" in self.said

    def post(self, key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(url, json=BODY, headers=headers, timeout=30)

    def redis(self, data: str = ".penstock") -> redis.Redis:
        return redis.Redis.from_url((self.folder / data / "redis.url").read_text().strip())

    def shell(self, line: str) -> str:
        """Run a command that `penstock up` printed, in its folder; return the output."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        line = re.sub(r"\S*\bpenstock (?=keys|worker|jobs|chat)", f"{sys.executable} -m cli ", line)
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def printed(self, words: str) -> str:
        """Return the line with these words."""
        (line,) = [line.strip() for line in self.said.splitlines() if words in line]
        return line

    def pids(self, words: str) -> list[int]:
        """Return the pids of its processes with these words in their command lines."""
        children = psutil.Process(self.popen.pid).children()
        return [child.pid for child in children if words in " ".join(child.cmdline())]

    def interrupt(self) -> int:
        self.popen.send_signal(signal.SIGINT)
        return self.popen.wait(timeout=10)


@contextmanager
def up(folder: Path, *arguments: str, ready_s: float = UP_S, **options: Any) -> Iterator[Up]:
    started = Up(folder, *arguments, **options)
    try:
        eventually("ready", started.ready, seconds=ready_s)
        yield started
    finally:
        if started.popen.poll() is None:
            started.interrupt()


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that run in `folder` or below it."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(folder):
            found.append(" ".join(process.info["cmdline"]))
    return found


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    """Run a `penstock up` that cannot start; return its one line of error."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "up", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("penstock: ")]
    return line


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Start one for the tests that change nothing."""
    with up(tmp_path_factory.mktemp("running"), "--model", "scripted") as started:
        yield started


def test_waiting_for_it_leaves_no_line_in_the_access_log(running: Up) -> None:
    log = (running.folder / ".penstock" / "logs" / "api.log").read_text()

    assert "Application startup complete" in log
    assert '"answered"' not in log


def test_nobody_else_on_the_machine_can_read_its_data_or_use_its_redis(running: Up) -> None:
    assert running.post().is_success

    entries = [running.folder / ".penstock", *(running.folder / ".penstock").rglob("*")]
    assert len(entries) > 10
    assert [str(path) for path in entries if path.stat().st_mode & 0o077] == []
    with running.redis() as client:
        assert client.config_get("port") == {"port": "0"}


def test_a_second_one_in_the_same_folder_says_who_is_there_and_harms_nothing(running: Up) -> None:
    with running.redis() as client:
        before = client.info("server")["process_id"]
        said = refused(running.folder, "--model", "scripted", "--port", str(free_port()))
        assert f"(process {running.popen.pid}, http://127.0.0.1:{running.port}/v1)" in said
        assert "--data .penstock-2 --port" in said
        assert client.info("server")["process_id"] == before
    assert running.post().is_success


def test_the_commands_that_it_prints_work(running: Up) -> None:
    job = running.post().json()["id"]

    assert job in running.shell(running.printed("jobs list"))
    assert "1 workers" in running.shell(running.printed("rq info"))


def test_chat_finds_the_api_that_runs_in_this_folder(running: Up) -> None:
    line = running.printed("penstock chat")

    assert line.endswith("penstock chat")  # the command finds the chosen port by itself
    assert len(running.shell(f"echo hi | {line}").split()) > 1


def test_up_serves_stops_cleanly_and_finds_its_data_again(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted", "--workers", "2") as first:
        answer = first.post()
        assert answer.status_code == 200
        began = time.monotonic()
        assert first.interrupt() == 0
        assert time.monotonic() - began < 8
    assert processes_of(tmp_path) == []
    assert not (tmp_path / ".penstock" / "api.url").exists()

    with up(tmp_path, "--model", "scripted") as second:
        assert answer.json()["id"] in second.shell("penstock jobs list")
        assert second.interrupt() == 0


def test_whatever_dies_is_started_again(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted") as running:
        job = running.post().json()["id"]
        for name, words in [("worker 1", "-m cli worker"), ("api", "-m cli api"), ("Redis", "-server")]:
            (pid,) = running.pids(words)
            os.kill(pid, signal.SIGKILL)
            eventually("told", partial(told, running, f"{name} died (SIGKILL) and was started again"))
            eventually("serves again", lambda: serves(running), seconds=30)
        assert job in running.shell("penstock jobs list")


def told(running: Up, words: str) -> bool:
    return words in running.said


def serves(running: Up) -> bool:
    try:
        return running.post().is_success
    except httpx.TransportError:
        return False


def test_what_dies_at_its_start_ends_up_with_a_sentence(tmp_path: Path) -> None:
    data = tmp_path / ".penstock" / "redis" / "appendonlydir"
    data.mkdir(parents=True)
    (data / "appendonly.aof.manifest").write_text("nonsense")
    (data.parent / "appendonly.aof").write_text("nonsense")  # the place of the file in Redis 6.2

    said = refused(tmp_path, "--model", "scripted", "--port", str(free_port()))

    assert f"Redis died at its start 5 times in a row (code 1); {data.parent}/redis.log ends with: " in said
    assert processes_of(tmp_path) == []


def test_kill_9_of_up_leaves_nothing_running_and_the_next_one_starts_at_once(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted") as first:
        job = first.post().json()["id"]
        (redis_pid,) = first.pids("-server")
        os.kill(redis_pid, signal.SIGSTOP)  # a stopped process cannot end with its parent
        first.popen.kill()
        first.popen.wait()

        with up(tmp_path, "--model", "scripted") as second:
            assert len([line for line in processes_of(tmp_path) if "-server" in line]) == 1
            assert job in second.shell("penstock jobs list")
            second.popen.kill()
            second.popen.wait()
    eventually("all gone", lambda: processes_of(tmp_path) == [], seconds=15)


def test_with_keys_required_it_starts_and_says_how_to_make_one(tmp_path: Path) -> None:
    with up(tmp_path, "--model", "scripted", "--data", "other data", PENSTOCK_KEYS="required") as running:
        assert running.post().status_code == 401

        key = running.shell(running.printed("keys create NAME")).strip()

        assert running.post(key).is_success
        assert f"export OPENAI_API_KEY={key}" == running.printed("export").replace("THE_KEY", key)


def test_without_workers_it_says_how_to_start_one(tmp_path: Path) -> None:
    with up(tmp_path, "scripted", "--engine", "scripted", "--workers", "0") as running:
        assert "No worker runs yet" in running.said
        line = running.printed("penstock worker")
        assert line.endswith("penstock worker --model=scripted --engine=scripted")
        environment = {**os.environ, "PENSTOCK_REDIS_URL": (tmp_path / ".penstock" / "redis.url").read_text().strip()}
        assert line.startswith('PENSTOCK_REDIS_URL="$(cat .penstock/redis.url)" ')
        command = [sys.executable, "-m", "cli", "worker", "scripted", "--engine=scripted"]
        worker = subprocess.Popen(command, env=environment)
        try:
            eventually("serves", lambda: serves(running), seconds=UP_S)
        finally:
            worker.terminate()
            worker.wait()


@pytest.fixture
def guarded(own_redis: EmbeddedRedis) -> Iterator[str]:
    """Return the URL of a Redis that requires a password."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", PASSWORD)
        yield f"redis://:{PASSWORD}@127.0.0.1:{own_redis.port}/0"


def test_a_password_is_neither_said_nor_logged_nor_an_argument(tmp_path: Path, guarded: str) -> None:
    with up(tmp_path, "--model", "scripted", PENSTOCK_REDIS_URL=guarded) as running:
        assert running.post().is_success
        children = psutil.Process(running.popen.pid).children(recursive=True)
        shown = [*[" ".join(child.cmdline()) for child in children], running.said]
        shown += [path.read_text() for path in (tmp_path / ".penstock" / "logs").iterdir()]
        assert len(shown) == 5
        assert [text for text in shown if PASSWORD in text] == []
        assert (tmp_path / ".penstock" / "redis.url").stat().st_mode & 0o077 == 0
        assert "1 workers" in running.shell(running.printed("rq info"))
        assert running.post().json()["id"] in running.shell("penstock jobs list")


def test_a_wrong_password_is_said_at_once_and_not_shown(tmp_path: Path, guarded: str) -> None:
    wrong = guarded.replace(PASSWORD, "wrong-secret")

    said = refused(tmp_path, "--port", str(free_port()), PENSTOCK_REDIS_URL=wrong)

    assert "redis://:***@127.0.0.1" in said
    assert "refuses its password" in said
    assert "wrong-secret" not in said


def test_what_starts_before_its_redis_waits_for_it(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", binary=find_binary(), port=free_port())
    running = Up(tmp_path, "--model", "scripted", "--redis-url", server.url)
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "cli", "worker", "--model", "scripted", "--redis-url", server.url]
        worker = subprocess.Popen(command, stderr=out)
    try:
        eventually("the worker says so", lambda: "waiting for Redis, 60 s more" in log.read_text(), seconds=UP_S)
        eventually(
            "up says so", lambda: "Waiting    PENSTOCK_REDIS_URL: no Redis answers" in running.said, seconds=UP_S
        )
        server.start()
        eventually("ready", running.ready, seconds=UP_S)
        eventually("both serve", lambda: "2 workers" in running.shell(running.printed("rq info")), seconds=UP_S)
        assert running.post().is_success
    finally:
        running.interrupt()
        worker.terminate()
        worker.wait()
        server.stop()


def test_what_cannot_start_is_one_clear_sentence(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    taken = str(own_redis.port)
    port = str(free_port())
    (tmp_path / "a file").touch()

    assert f"port {taken} on 127.0.0.1 is in use" in refused(tmp_path, "--port", taken)
    assert "there is no folder /no/such/model" in refused(tmp_path, "--model", "/no/such/model")
    assert "ENGINE: there is no engine 'warp'; there are " in refused(tmp_path, "builtin", "--engine", "warp")
    assert "ENGINE_OPTION: 'speed' is not KEY=VALUE" in refused(tmp_path, "--engine-option", "speed")
    for data in ("a file", "a file/below", "/proc/penstock"):
        assert f"--data: the folder {data} cannot be created (" in refused(tmp_path, "--port", port, "--data", data)
    nobody = f"redis://127.0.0.1:{free_port()}"
    said = refused(tmp_path, "--port", port, "--redis-url", nobody, PENSTOCK_REDIS_WAIT_S="0")
    assert f"no Redis answers at {nobody}" in said
    assert "PENSTOCK_LEASE_MS" in refused(tmp_path, PENSTOCK_LEASE_MS="soon")
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert "noeviction" in refused(tmp_path, "--port", port, "--redis-url", own_redis.url)
    assert processes_of(tmp_path) == []


def test_a_start_that_is_refused_leaves_nothing_behind(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    port, nobody = str(free_port()), f"redis://127.0.0.1:{free_port()}"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()

    refused(tmp_path, "--port", str(own_redis.port))
    refused(tmp_path, "--port", str(own_redis.port), "--data", "one/two/three")
    refused(tmp_path, "--port", port, "--redis-url", nobody, PENSTOCK_REDIS_WAIT_S="0")
    refused(tmp_path, "--port", str(own_redis.port), "--data", "mine")

    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["mine", "mine/notes"]


def test_a_server_of_release_0_2_in_the_folder_is_not_disturbed(tmp_path: Path) -> None:
    data, port = tmp_path / ".penstock" / "redis", free_port()
    data.mkdir(parents=True)
    (data.parent / "redis.url").write_text(f"redis://127.0.0.1:{port}/0\n")
    command = [
        str(find_binary()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(data),
        "--appendonly",
        "yes",
    ]
    older = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually("listens", lambda: listens(port))
        assert "an older `penstock up` runs in the folder .penstock" in refused(tmp_path, "--port", str(free_port()))
        assert older.poll() is None
    finally:
        older.terminate()
        older.wait()


def listens(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
