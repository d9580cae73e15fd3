"""A host loads, unloads and swaps the models of a file; it may be killed, and no request is lost."""

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.catalog.hosting import DONE, Hosting
from shared.domain.hosting import HostedModel, HostedState, Order, OrderVerb, When
from shared.redis import keys
from shared.redis.client import connect
from tests.e2e.harness import Process, Stack, eventually
from tests.e2e.test_faults import Reader, ask
from workers.host.main import machine_id
from workers.host.standing import HELD_OFF_S

TWO = """
[host]
memory = "{memory}"
[defaults]
engine = "scripted"
keep_alive = "{keep_alive}"
scripted_tokens = 100000
[models.a]
scripted_step_ms = {step_ms}
[models.b]
scripted_step_ms = {step_ms}
aliases = ["b-again"]
"""
PLAIN = {"memory": "2GiB", "keep_alive": "10m", "step_ms": 5}
Answer = TypeVar("Answer")
LOAD_S = 30.0  # enough for a worker to start on a loaded machine


class HostedStack:
    """An API, and hosts of one models file."""

    def __init__(self, folder: Path, server: EmbeddedRedis) -> None:
        self.folder = folder
        self.server = server
        self.file = folder / "models.toml"
        self.stack = Stack(folder, server)
        self.hosts: list[Process] = []

    def start(self, text: str) -> None:
        self.file.write_text(text)
        self.stack.start(workers=0)
        self.add_host()
        eventually("the models are listed", self.listed)

    def add_host(self) -> Process:
        options = [f"--models={self.file}", f"--data={self.folder}"]
        log = self.folder / f"host-{len(self.hosts)}.log"
        self.hosts.append(Process(["host", *options], environment=self.stack.environment, log=log))
        return self.hosts[-1]

    def stop(self) -> None:
        for host in self.hosts:
            host.terminate()
        for host in self.hosts:
            host.stop()
        for pid in self.pids().values():  # those of a test that failed
            psutil.Process(pid).kill()
        self.stack.stop()

    def listed(self) -> list[str]:
        return [each["id"] for each in httpx.get(f"{self.stack.base}/v1/models").json()["data"]]

    def hosted(self, model: str) -> HostedModel | None:
        records = self.read(lambda hosting: hosting.of(model))
        return records[0] if records else None

    def read(self, question: Callable[[Hosting], Awaitable[Answer]]) -> Answer:
        async def asked() -> Answer:
            client = connect(self.server.url)
            try:
                return await question(Hosting(client))
            finally:
                await client.aclose()

        return asyncio.run(asked())

    def is_in(self, model: str, state: HostedState) -> HostedModel | None:
        found = self.hosted(model)
        return found if found and found.state is state else None

    def order(self, verb: OrderVerb, model: str, **more: Any) -> str:
        """Give an order, and return its outcome."""
        order = Order(id=uuid.uuid4().hex, verb=verb, model=model, **more)
        (host,) = self.read(lambda hosting: hosting.hosts())
        self.read(lambda hosting: hosting.place(host.id, order))
        told = eventually("it is done", lambda: self.read(lambda hosting: hosting.outcome(order.id)), seconds=LOAD_S)
        return str(told)

    def ask(self, model: str, content: str = "hello", max_tokens: int = 20) -> httpx.Response:
        return self.stack.post({"model": model, "messages": ask(content), "max_tokens": max_tokens, "temperature": 0})

    def text(self, model: str, content: str, max_tokens: int) -> str:
        return str(self.ask(model, content, max_tokens).json()["choices"][0]["message"]["content"])

    def pids(self) -> dict[str, int]:
        """Return the process id of each worker that runs, by its record's name."""
        found = {path.stem: json.loads(path.read_text()) for path in self.folder.glob("host/workers/*.json")}
        return {name: record["pid"] for name, record in found.items() if psutil.pid_exists(record["pid"])}


@pytest.fixture
def hosted(tmp_path: Path, own_redis: EmbeddedRedis) -> Iterator[HostedStack]:
    running = HostedStack(tmp_path, own_redis)
    yield running
    running.stop()


def test_a_model_is_loaded_by_its_first_request_and_unloaded_when_it_was_idle(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN | {"keep_alive": "1s"}))
    eventually("the alias is listed", lambda: set(hosted.listed()) == {"a", "b", "b-again"})
    assert hosted.is_in("a", HostedState.CONFIGURED)

    answer = hosted.ask("b-again")

    assert (answer.status_code, answer.json()["model"]) == (200, "b")
    eventually("b is unloaded", lambda: hosted.is_in("b", HostedState.CONFIGURED), seconds=LOAD_S)
    after = hosted.hosted("b")
    assert after is not None
    assert after.load_s > 0
    assert after.memory_bytes > 0
    assert hosted.pids() == {}
    assert hosted.is_in("a", HostedState.CONFIGURED)


def test_answers_go_on_after_their_model_was_unloaded_in_the_middle_and_none_is_wrong(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN | {"step_ms": 20}))
    cut, whole = ([Reader(hosted.stack, model, f"long {n}", max_tokens=150) for n in range(12)] for model in "ab")
    for reader in cut:
        reader.start()
    for reader in cut:
        assert reader.started.wait(LOAD_S)

    assert hosted.order(OrderVerb.UNLOAD, "a", when=When.NOW) == DONE
    for reader in whole:
        reader.start()
    for reader in whole:
        assert reader.started.wait(LOAD_S)
    assert hosted.order(OrderVerb.LOAD, "a") == DONE
    for reader in (*cut, *whole):
        reader.join()

    assert [reader.error for reader in (*cut, *whole)] == [None] * 24
    assert {reader.finish for reader in cut} == {"length"}
    assert [reader.text for reader in cut] == [reader.text for reader in whole]  # which depends on the prompt alone
    found = list(hosted.stack.redis.scan_iter("rq:job:*"))
    jobs: list[Any] = [hosted.stack.redis.hmget(key, "attempt", "timeline") for key in found]
    assert {attempt for attempt, _ in jobs} == {b"1"}  # a hand-over is no attempt
    assert sum(b"released" in timeline for _, timeline in jobs) == 12


def test_a_killed_host_leaves_its_workers_and_the_next_one_adopts_them(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN | {"step_ms": 20}))
    reader = Reader(hosted.stack, "a", "long", max_tokens=150)
    reader.start()
    assert reader.started.wait(LOAD_S)
    eventually("a is ready", lambda: hosted.is_in("a", HostedState.READY))
    before = hosted.pids()

    hosted.hosts[0].kill()
    hosted.add_host()

    eventually("a is adopted", lambda: hosted.is_in("a", HostedState.READY))
    reader.join()
    assert (reader.error, reader.finish) == (None, "length")
    assert hosted.pids() == before
    assert hosted.ask("b").status_code == 200  # and it loads others


def test_a_host_that_is_stopped_ends_its_workers(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN))
    assert hosted.ask("a").status_code == 200

    assert hosted.hosts[0].stop() == 0

    assert hosted.pids() == {}
    assert hosted.hosted("a") is None


def test_a_second_host_of_the_machine_waits_and_takes_over(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN))
    assert hosted.ask("a").status_code == 200
    second = hosted.add_host()
    eventually("it stands by", lambda: "standing by" in second.log.read_text())
    before = hosted.pids()

    hosted.hosts[0].popen.send_signal(signal.SIGKILL)

    eventually("it has taken over", lambda: (found := hosted.hosted("a")) and f"-{second.popen.pid}-" in found.host)
    assert hosted.pids() == before
    assert second.log.read_text().count("standing by") == 1


def test_a_host_that_has_lost_its_machine_to_another_one_ends_its_workers(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN))
    assert hosted.ask("a").status_code == 200

    hosted.stack.redis.set(keys.machine(machine_id()), "another-host")

    assert hosted.hosts[0].popen.wait(LOAD_S) == 0
    assert "another host holds this machine now" in hosted.hosts[0].log.read_text()
    assert hosted.pids() == {}
    assert hosted.stack.redis.get(keys.machine(machine_id())) == b"another-host"


def test_the_jobs_of_a_model_that_cannot_be_loaded_fail_with_the_reason(hosted: HostedStack) -> None:
    hosted.start('[models.gone]\nsource = "./missing"\n[models.a]\nengine = "scripted"\n')

    answer = hosted.ask("gone")

    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_not_loaded"
    assert "there is no folder" in error["message"]
    failed = eventually("it is told", lambda: hosted.is_in("gone", HostedState.FAILED))
    assert "there is no folder" in failed.reason
    assert hosted.ask("a").status_code == 200


def test_orders_load_keep_switch_and_unload(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN))

    assert hosted.order(OrderVerb.KEEP, "a", until_s=4e9) == DONE  # which loads it
    assert hosted.is_in("a", HostedState.READY)
    assert hosted.order(OrderVerb.LOAD, "a") == DONE
    eventually("it is kept", lambda: (found := hosted.hosted("a")) and found.kept_until_s == 4e9)
    assert hosted.order(OrderVerb.SWITCH, "a", instead="b", when=When.NOW) == DONE
    assert hosted.is_in("b", HostedState.READY)
    eventually("a is gone", lambda: hosted.is_in("a", HostedState.CONFIGURED))
    assert hosted.order(OrderVerb.UNLOAD, "b") == DONE
    assert hosted.is_in("b", HostedState.CONFIGURED)
    began = time.monotonic()
    assert hosted.ask("b").status_code == 200  # a request that comes later loads it again at once
    assert time.monotonic() - began < HELD_OFF_S
    assert hosted.order(OrderVerb.LOAD, "z") == "this host has no model 'z'"


def test_the_file_is_read_again_when_it_changes_and_a_bad_one_changes_nothing(hosted: HostedStack) -> None:
    hosted.start(TWO.format(**PLAIN))
    assert hosted.ask("a").status_code == 200
    before = hosted.pids()

    hosted.file.write_text("[models.a]\nsorce = 1\n")
    eventually("the error is told", lambda: "models.a.sorce" in hosted.hosts[0].log.read_text())
    assert hosted.ask("a").status_code == 200
    hosted.file.write_text(TWO.format(**PLAIN) + '[models.c]\naliases = ["third"]\n')
    hosted.hosts[0].popen.send_signal(signal.SIGHUP)

    eventually("c is listed", lambda: "third" in hosted.listed())
    assert hosted.ask("third").status_code == 200
    assert hosted.pids().items() >= before.items()
