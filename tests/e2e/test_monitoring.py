"""Prometheus, Grafana's dashboard and an autoscaler can read a running Penstock."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import lacking
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.ports import free_port

FILES = Path(__file__).parents[2] / "helm" / "files"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
ADMIN = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitored")
    with standalone_stack(
        folder, "scripted", scripted_step_ms=2, scripted_tokens=10**6, admin_key="secret", target_wait_s=1
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("prometheus")
    if binary is None:
        lacking("a prometheus on PATH: apt-get install prometheus")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    targets = [url.removeprefix("http://") for url in (stack.base, *stack.worker_urls())]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [{"job_name": "penstock", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    where = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, *where, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        eventually("Prometheus ready", lambda: _ready(base), seconds=30)
        yield base
    finally:
        process.terminate()
        process.wait()


def _ready(base: str) -> bool:
    try:
        return httpx.get(f"{base}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def asked(base: str, path: str, **params: str) -> Any:
    answer = httpx.get(f"{base}/api/v1/{path}", params=params).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def test_prometheus_takes_the_alerts_and_has_nothing_to_complain_about(prometheus: str) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = asked(prometheus, "rules")["groups"]
        found: list[dict[str, Any]] = group["rules"]
        return found if all(rule["health"] == "ok" for rule in found) else []

    found = eventually("the rules are evaluated", rules, seconds=30)

    assert len(found) == len(yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"])
    assert {rule["state"] for rule in found} == {"inactive"}


def test_every_panel_of_the_dashboard_can_be_drawn(stack: Stack, prometheus: str) -> None:
    for _ in range(3):
        assert stack.post(ASK).status_code == 200
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    eventually(
        "the jobs are scraped",
        lambda: asked(prometheus, "query", query="penstock_jobs_total > 0")["result"],
        seconds=30,
    )

    for query in queries:
        asked(prometheus, "query", query=query.replace("$model", ".*").replace("$__rate_interval", "1m"))
    drawn = eventually(
        "the API is scraped",
        lambda: asked(prometheus, "query", query='max by (model) (penstock_workers{model=~".*"})')["result"],
        seconds=30,
    )
    assert [(each["metric"]["model"], each["value"][1]) for each in drawn] == [("scripted", "1")]


def test_a_queue_that_grows_wants_workers_even_when_there_is_none(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "scripted", admin_key="secret", target_wait_s=1, job_ttl_s=60) as stack:
        before = demand(stack)
        stack.workers[0].stop()
        eventually("nobody serves", lambda: demand(stack)["workers"] == 0, seconds=30)
        stream = {"stream": True, "max_tokens": 1000}
        headers = {"x-penstock-grace-s": "60"}
        with httpx.Client(base_url=stack.base, timeout=60) as client:
            for _ in range(8):
                with client.stream("POST", "/v1/chat/completions", json=ASK | stream, headers=headers) as answer:
                    assert answer.status_code == 200

        grown = demand(stack)

    assert (before["workers"], before["workers_wanted"]) == (1, 0)
    assert (grown["workers"], grown["waiting_jobs"]["standard"]) == (0, 8)
    assert grown["workers_wanted"] > 1
    assert grown["oldest_waiting_s"] > 0


def test_top_shows_models_workers_and_running_jobs(stack: Stack) -> None:
    ask = ASK | {"stream": True, "max_tokens": 5000}
    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=ask) as running:
        eventually("it runs", lambda: stack.running() == 1)
        shown = subprocess.run(
            [sys.executable, "-m", "cli", "top", "--once"],
            env=stack.environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        job_id = running.headers["x-penstock-job-id"]

    models, workers, jobs = (part.splitlines() for part in shown.strip().split("\n\n"))
    assert models[1].split()[:4] == ["scripted", "1", "1", "1"]
    assert workers[1].split()[2:5] == [str(stack.workers[0].popen.pid), "busy", "scripted"]
    assert jobs[1].split()[:3] == [job_id, "scripted", "standard"]


def demand(stack: Stack) -> dict[str, Any]:
    made: dict[str, Any] = httpx.get(f"{stack.base}/admin/demand?model=scripted", headers=ADMIN).json()
    return made
