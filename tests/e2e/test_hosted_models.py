"""Models that hosts have, over HTTP: requests for one that is not loaded, states, and an operator's orders. The records
of the host are this test's."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest

from shared.catalog.hosting import Hosting
from shared.catalog.model_registry import ModelRegistry
from shared.domain.hosting import Host, HostedModel, HostedState, Order, OrderVerb, When
from shared.domain.job import ModelInfo
from shared.redis import keys
from shared.redis.client import connect
from tests.e2e.harness import Stack, eventually, standalone_stack

ADMIN = {"authorization": "Bearer secret"}
HOST = Host(id="h-1", hostname="here", machine="boot", pid=1)
COLD = HostedModel(host="h-1", model="cold", state=HostedState.CONFIGURED, since_s=1, load_s=40)
WARM = replace(COLD, model="scripted", state=HostedState.READY, workers=1, memory_bytes=1024)
ASK = {"model": "cold", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("hosted"), "scripted", admin_key="secret") as stack:
        yield stack


@pytest.fixture
def stack(started: Stack) -> Stack:
    """Have one host with a model that is served and one that is not loaded."""
    cold = ModelInfo(name="cold", engine="", context_length=0, created_s=1)
    of(started, lambda hosting: hosting.leave("h-1"))
    write(started, COLD, WARM)
    with_client(started, lambda client: ModelRegistry(client).announce(cold))
    eventually("the host's models known", lambda: "load_left_s" in job_of(started, queued(started)), seconds=5)
    return started


def with_client(stack: Stack, do: Callable[[Any], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        client = connect(stack.server.url)
        try:
            return await do(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def of(stack: Stack, do: Callable[[Hosting], Awaitable[Result]]) -> Result:
    return with_client(stack, lambda client: do(Hosting(client)))


def models(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "models", *arguments, "--redis-url", stack.server.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def write(stack: Stack, *records: HostedModel) -> None:
    of(stack, lambda hosting: hosting.write(HOST, records))


def taken(stack: Stack) -> list[Order]:
    return of(stack, lambda hosting: hosting.take_orders("h-1"))


def opened(stack: Stack, **more: Any) -> httpx.Headers:
    """Ask for a stream, and leave as soon as its headers are there."""
    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=ASK | {"stream": True} | more) as answer:
        assert answer.status_code == 200
        return answer.headers


def queued(stack: Stack) -> str:
    headers = {"x-penstock-grace-s": "forever", "x-penstock-queue-deadline-s": "60"}
    body = ASK | {"stream": True}
    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.headers["x-penstock-job-id"]


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = httpx.get(f"{stack.base}/v1/jobs/{job_id}").json()
    httpx.post(f"{stack.base}/v1/jobs/{job_id}/cancel")
    return job


def admin(stack: Stack, path: str, body: Any = None) -> httpx.Response:
    return httpx.post(f"{stack.base}/admin/models/{path}", json=body, headers=ADMIN, timeout=30)


def test_a_request_for_a_model_that_is_not_loaded_waits_and_knows_for_how_long(stack: Stack) -> None:
    assert float(opened(stack)["x-penstock-estimated-wait-s"]) == 40

    job = job_of(stack, queued(stack))

    assert (job["status"], job["model_state"], job["load_left_s"]) == ("queued", "configured", 40)


def test_keep_alive_is_noted_for_a_hosts_model_alone(stack: Stack) -> None:
    for asked, noted in (("5m", b"300"), (0, b"0"), (-1, b"-1"), ("-1", b"-1"), (2.5, b"2.5")):
        opened(stack, keep_alive=asked)
        assert stack.redis.get(keys.keep_alive("cold")) == noted

    response = httpx.post(
        f"{stack.base}/v1/responses",
        json={"model": "cold", "input": "hello", "background": True, "keep_alive": "7m"},
    )
    assert response.status_code == 200, response.text
    assert stack.redis.get(keys.keep_alive("cold")) == b"420"
    opened(stack, keep_alive=2.5)
    of(stack, lambda hosting: hosting.leave("h-1"))
    eventually("host forgotten", lambda: "load_left_s" not in job_of(stack, queued(stack)))
    opened(stack, keep_alive=7)
    assert stack.redis.get(keys.keep_alive("cold")) == b"2.5"
    refused = stack.post(ASK | {"keep_alive": "soon"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "keep_alive")


def test_an_operator_sees_every_model_with_its_state(stack: Stack) -> None:
    listed = httpx.get(f"{stack.base}/admin/models", headers=ADMIN).json()["data"]

    found = {each["id"]: each for each in listed}
    assert {name: each["state"] for name, each in found.items()} == {"cold": "configured", "scripted": "ready"}
    (warm,) = found["scripted"]["hosts"]
    assert (warm["hostname"], warm["memory_bytes"], warm["unloads_at"]) == ("here", 1024, None)
    assert httpx.get(f"{stack.base}/admin/models").status_code == 401


def test_an_operators_verbs_become_orders(stack: Stack) -> None:
    answers = [
        admin(stack, "cold/load"),
        admin(stack, "scripted/unload", {"when": "running"}),
        admin(stack, "switch", {"from": "scripted", "to": "cold"}),
        admin(stack, "scripted/keep", {"for": "30m"}),
    ]

    assert [each.status_code for each in answers] == [200] * 4
    orders = taken(stack)
    assert [each.json()["data"][0]["id"] for each in answers] == [order.id for order in orders]
    assert [(order.verb, order.model, order.when, order.instead) for order in orders] == [
        (OrderVerb.LOAD, "cold", When.IDLE, ""),
        (OrderVerb.UNLOAD, "scripted", When.RUNNING, ""),
        (OrderVerb.SWITCH, "scripted", When.RUNNING, "cold"),
        (OrderVerb.KEEP, "scripted", When.IDLE, ""),
    ]


def test_an_answer_waits_for_its_order(stack: Stack) -> None:
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(admin, stack, "cold/load", {"wait_s": 20})
        (order,) = eventually("the order placed", lambda: taken(stack))
        of(stack, lambda hosting: hosting.report(order.id, "there is no room for it"))

        (answered,) = asked.result().json()["data"]

    assert (answered["status"], answered["error"]) == ("failed", "there is no room for it")


def test_wrong_orders_name_what_is_wrong(stack: Stack) -> None:
    for path, body, status, param in (
        ("nowhere/load", None, 404, "name"),
        ("cold/keep", {}, 400, "for"),
        ("cold/keep", {"for": None}, 400, "for"),
        ("scripted/unload", {"when": "soon"}, 400, "when"),
        ("switch", {"from": "scripted"}, 400, "to"),
    ):
        answer = admin(stack, path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), path
    assert taken(stack) == []


def test_tools_for_llama_swap_see_what_runs_and_unload_it(stack: Stack) -> None:
    write(stack, replace(COLD, state=HostedState.LOADING))

    running = httpx.get(f"{stack.base}/running").json()["running"]
    denied = httpx.post(f"{stack.base}/api/models/unload")
    one = httpx.post(f"{stack.base}/api/models/unload/scripted", headers=ADMIN)
    every = httpx.post(f"{stack.base}/api/models/unload", headers=ADMIN)

    assert [(each["model"], each["state"]) for each in running] == [("cold", "starting"), ("scripted", "ready")]
    assert (denied.status_code, one.text, every.json()) == (401, "OK", {"msg": "ok"})
    orders = taken(stack)
    assert {each.when for each in orders} == {When.NOW}
    assert sorted(each.model for each in orders) == ["cold", "scripted", "scripted"]


def test_the_command_lists_states_and_what_is_loaded(stack: Stack) -> None:
    now = time.time()
    warm = replace(WARM, memory_bytes=3 * 2**29, since_s=now - 7530, unloads_at_s=now + 595)
    failed = replace(COLD, model="broken", state=HostedState.FAILED, reason="there is no such folder")
    loading = replace(COLD, state=HostedState.LOADING, phase="warm-up", progress=0.4, estimated=True, since_s=now)
    write(stack, warm, failed, loading)

    listed, loaded = models(stack, "list").stdout.splitlines(), models(stack, "ps").stdout.splitlines()
    as_json = json.loads(models(stack, "ps", "--json").stdout)

    assert [line.split()[:2] for line in listed[1:]] == [
        ["broken", "failed"],
        ["cold", "loading"],
        ["scripted", "ready"],
    ]
    assert listed[1].endswith("there is no such folder")
    assert loaded[1].split()[:5] == ["cold", "loading", "warm-up", "~40%", "here"]
    assert loaded[2].split()[:9] == ["scripted", "ready", "here", "1.5", "GiB", "2h", "5m", "ago", "in"]
    assert [each["id"] for each in as_json] == ["cold", "scripted"]


def test_the_command_waits_until_its_order_is_carried_out(stack: Stack) -> None:
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(models, stack, "load", "cold")
        (order,) = eventually("the order placed", lambda: taken(stack))
        write(stack, WARM, replace(COLD, state=HostedState.LOADING, phase="weights", progress=0.4))
        of(stack, lambda hosting: hosting.report(order.id))
        loaded = asked.result()
        asked = threads.submit(models, stack, "switch", "scripted", "cold", "--when", "now")
        (order,) = eventually("the order placed", lambda: taken(stack))
        of(stack, lambda hosting: hosting.report(order.id, "there is no room for it"))
        refused = asked.result()

    assert (loaded.returncode, loaded.stdout) == (0, "cold loaded\n")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (1, "scripted for cold: there is no room for it")
    assert (order.when, order.instead) == (When.NOW, "cold")


def test_a_command_that_gives_up_says_that_its_order_stands(stack: Stack) -> None:
    given_up = models(stack, "unload", "scripted", "--wait", "0.1s")

    assert given_up.returncode == 1
    assert "scripted: not done within 0.1 s; it will be done as soon as it can be" in given_up.stderr
    assert [each.verb for each in taken(stack)] == [OrderVerb.UNLOAD]
    assert models(stack, "unload", "cold").stdout == "it is not loaded\n"
    assert "No host has the model 'nowhere'" in models(stack, "load", "nowhere").stderr
