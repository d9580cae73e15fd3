"""`docker compose` runs private, durable containers, and `.env.example` lists its variables."""

import re
from typing import Any

import yaml

from shared.redis import keys
from tests.conftest import ROOT
from workers.host.main import LAST_ID

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def services() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return made


def test_the_example_lists_every_variable_with_its_default() -> None:
    code = "\n".join(line for line in COMPOSE.splitlines() if not line.lstrip().startswith("#"))
    asked = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", code))
    told = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert asked
    assert told == asked


def test_nothing_but_this_machine_reaches_a_port() -> None:
    published = [port for service in services().values() for port in service.get("ports", ())]

    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_finds_the_workers_of_every_profile() -> None:
    scraped = yaml.safe_load((ROOT / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    names = [name for job in scraped for found in job["dns_sd_configs"] for name in found["names"]]

    assert sorted(names) == sorted(name for name, each in services().items() if "build" in each and name != "host")


def test_our_containers_can_change_nothing_but_their_volumes() -> None:
    for name in ("api", "worker", "host", "worker-gpu", "worker-vllm"):
        service = services()[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_worker_has_time_to_hand_over() -> None:
    worker = services()["worker"]

    assert int(worker["stop_grace_period"].removesuffix("s")) > int(worker["environment"]["PENSTOCK_DRAIN_S"])


def test_the_health_of_a_host_is_its_record_in_redis() -> None:
    """`docker compose up --wait` fails if a service has no health check at all."""
    host = services()["host"]
    code = host["healthcheck"]["test"][-1]
    data = host["command"][host["command"].index("--data") + 1]

    compile(code, "healthcheck", "exec")
    assert f"EXISTS {keys.host('%s')}\\r\\n" in code
    assert f'"{data}/host/{LAST_ID}"' in code


def test_a_models_file_that_is_missing_is_not_made_a_folder() -> None:
    (mount,) = [each for each in services()["host"]["volumes"] if "models.toml" in str(each)]

    assert mount["bind"] == {"create_host_path": False}


def test_redis_keeps_everything() -> None:
    command = " ".join(services()["redis"]["command"])

    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
