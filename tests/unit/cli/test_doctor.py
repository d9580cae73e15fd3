"""Every warning of `penstock doctor` says what is to be done."""

import re
from typing import Any

import pytest

from cli.doctor import SLOW_MS, diagnosis, latency
from shared.domain.hosting import HostedModel, HostedState
from shared.domain.job import ModelInfo
from shared.redis import health as checkup
from shared.redis.health import Finding, Level
from shared.settings import load_settings

ACTION = re.compile(r"\b(start|run|raise|set|make room|connect|use|install|needs)\b|`.+` goes on", re.IGNORECASE)
GOOD = {
    "redis_version": "7.2.0",
    "maxmemory": 100,
    "used_memory": 10,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "appendfsync": "everysec",
    "connected_slaves": 1,
}


def diagnosed(*, workers: int = 1, waiting: int = 0, paused: bool = False, **more: Any) -> list[str]:
    info = ModelInfo(
        name="m", engine="batched", context_length=1, created_s=1, workers=workers, waiting=waiting, paused=paused
    )
    usual: dict[str, Any] = {"started": 0, "failed": 0, "oldest_s": 0, "silent": 0}
    return [each.text for each in diagnosis(info, **usual | more) if each.level is not Level.GOOD]


def test_a_model_without_trouble_has_one_good_line() -> None:
    assert diagnosed() == []
    assert diagnosed(waiting=3, oldest_s=5) == []


@pytest.mark.parametrize(
    ("trouble", "action"),
    [
        ({"workers": 0, "waiting": 3, "oldest_s": 900}, "start one with `penstock worker --model m`"),
        ({"paused": True, "waiting": 3, "oldest_s": 900}, "`penstock models resume m` resumes it"),
        ({"waiting": 3, "oldest_s": 900}, "start more workers"),
        ({"workers": 0, "silent": 2}, "start one with `penstock worker --model m`"),
        ({"workers": 0}, "no worker serves it: start one with `penstock worker --model m`"),
        ({"failed": 1}, "1 failed job is kept: use `penstock jobs list -m m --state failed` to see why"),
        ({"failed": 3}, "`penstock jobs replay -m m` to run them again"),
    ],
)
def test_trouble_of_a_model_is_told_once_with_its_remedy(trouble: dict[str, Any], action: str) -> None:
    (said,) = diagnosed(**trouble)

    assert action in said


def hosted(state: HostedState, reason: str = "") -> Any:
    return HostedModel(host="h", model="m", state=state, since_s=1, reason=reason)


def test_a_model_that_its_host_loads_when_it_is_wanted_needs_no_worker() -> None:
    assert diagnosed(workers=0, hosted=hosted(HostedState.CONFIGURED)) == []


def test_a_model_that_its_host_could_not_load_is_told_with_the_reason() -> None:
    (said,) = diagnosed(workers=0, hosted=hosted(HostedState.FAILED, "no such folder"))

    assert "its last load failed (no such folder)" in said


def redis_findings(durability: str = "fast", **info: Any) -> list[Finding]:
    known, settings = GOOD | info, load_settings(durability=durability)
    parts = [
        checkup._server(known),
        checkup._memory(known, settings),
        checkup._persistence(known),
        checkup._durability(known, settings),
    ]
    return [finding for part in parts for finding in part]


def test_whatever_is_wrong_with_redis_comes_with_its_remedy() -> None:
    wrong: list[dict[str, Any]] = [
        {"redis_version": "5.0.0"},
        {"role": "slave"},
        {"cluster_enabled": 1},
        {"maxmemory_policy": "allkeys-lru"},
        {"maxmemory": 0},
        {"used_memory": 90},
        {"used_memory": 100},
        {"aof_enabled": 0},
        {"aof_last_write_status": "err"},
        {"durability": "safe", "redis_version": "7.0.0"},
        {"durability": "durable", "connected_slaves": 0},
    ]

    assert all(finding.level is Level.GOOD for finding in redis_findings())
    assert latency(SLOW_MS).level is Level.GOOD
    for each in [*[redis_findings(**info) for info in wrong], [latency(SLOW_MS + 1)]]:
        bad = [finding for finding in each if finding.level is not Level.GOOD]
        assert bad
        for finding in bad:
            assert ACTION.search(finding.text), finding.text
