"""A model has a standing on its host, of which the host tells others."""

import math
from dataclasses import replace
from pathlib import Path

from shared.catalog.workloads import WaitingJobs, Workload, combined
from shared.domain.hosting import HostedState
from shared.domain.job import Priority
from shared.models_file.reading import parse
from workers.host.actions import Load
from workers.host.fleet import Fleet
from workers.host.hosted_models import HostedSpec, hosted_specs
from workers.host.pauses import Pauses
from workers.host.remembered import Memory, Remembered
from workers.host.reports import hosted_model
from workers.host.standing import BACK_OFF_MAX_S, HELD_OFF_S, PEAK_S, Standing
from workers.process.load_progress import PROGRESS_FILE, WARM_UP, WEIGHTS, read, tell

FILE = b"""
[defaults]
keep_alive = "60s"
[models.plain]
engine = "scripted"
scripted_step_ms = 5
tf32 = true
[models.online]
upstreams = [{url = "https://api.openai.com/v1", key = "${env:OPENAI_API_KEY}"}]
[models.tuned]
source = "builtin"
adapters = {sql = "./sql"}
"""
ONE = Workload(waiting={Priority.STANDARD: WaitingJobs(jobs=1, tokens=10, oldest_s=3)})
KNOWN = Remembered(host_bytes=100, load_s=4)


def specs(content: bytes = FILE) -> dict[str, HostedSpec]:
    return hosted_specs(parse(content, Path("/etc/models.toml")), 0)


def standing() -> Standing:
    return Standing(specs()["plain"], since_s=50)


def waiting(oldest_s: float) -> Workload:
    return Workload(waiting={Priority.STANDARD: WaitingJobs(jobs=1, tokens=10, oldest_s=oldest_s)})


def not_before_s(standing: Standing) -> float:
    return standing.planned(KNOWN, Pauses(), ready=0).not_before_s


def test_an_unloaded_model_is_held_off_for_jobs_that_waited_before_and_not_for_those_that_come_later() -> None:
    unloaded = standing()
    unloaded.unloaded_s = 100

    unloaded.asked(waiting(oldest_s=1), now=105, gone=False)
    unloaded.gone(106)
    unloaded.asked(waiting(oldest_s=2), now=107, gone=True)  # its worker handed this one back
    assert not_before_s(unloaded) == 106 + HELD_OFF_S

    unloaded.asked(Workload(), now=108, gone=True)
    unloaded.asked(waiting(oldest_s=1), now=109, gone=True)
    assert not_before_s(unloaded) <= 109


def test_a_job_that_comes_after_an_unloading_does_not_end_the_pause_of_a_failed_load() -> None:
    broken = standing()
    broken.failed("no memory", now=100)
    pause_s = not_before_s(broken)
    broken.unloaded_s = 101

    broken.asked(waiting(oldest_s=1), now=103, gone=True)

    assert not_before_s(broken) == pause_s > 103


def test_a_worker_is_started_as_the_file_says() -> None:
    found = specs()

    assert found["plain"].arguments[:2] == ("plain=plain", "--engine=scripted")
    assert found["plain"].environment.items() >= {"PENSTOCK_SCRIPTED_STEP_MS": "5.0", "PENSTOCK_TF32": "true"}.items()
    assert found["tuned"].names == ("tuned", "sql")
    assert "--adapter=sql=/etc/sql" in found["tuned"].arguments
    assert "${env:OPENAI_API_KEY}" in "".join(found["online"].arguments)  # its worker resolves it
    assert found["online"].source == ""


def test_before_it_is_measured_a_model_takes_what_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)

    def estimate(source: str, engine: str = "native") -> int | None:
        return specs(f'[models.m]\nsource = "{source}"\nengine = "{engine}"\n'.encode())["m"].bytes_estimate

    known = estimate(str(tmp_path))
    assert known is not None
    assert known > 1000
    assert estimate("someone/on-the-hub") is None
    assert estimate(str(tmp_path), "package.module:Class") is None
    (tmp_path / "more.safetensors").symlink_to(tmp_path / "gone")
    assert estimate(str(tmp_path)) is None  # rather than an error of the host


def test_another_table_has_another_digest_and_another_bound_of_workers_does_not() -> None:
    before = specs()["plain"]

    assert specs(FILE.replace(b"step_ms = 5", b"step_ms = 6"))["plain"].digest != before.digest
    assert specs(FILE + b"workers = [1, 4]\n")["plain"].digest == before.digest


def test_a_failed_load_is_tried_again_after_a_pause_that_grows_up_to_a_bound() -> None:
    model, pauses = standing(), []

    for _ in range(9):
        model.failed("no memory", 100)
        pauses.append(model.not_before_s - 100)

    assert pauses[:3] == [5, 10, 20]
    assert pauses[-1] == BACK_OFF_MAX_S
    model.loaded()
    assert (model.reason, model.not_before_s) == ("", 0)


def test_the_peak_of_the_last_minute_says_how_many_workers_are_wanted() -> None:
    model = standing()
    model.wants(3, 0)
    model.wants(1, 10)

    assert model.workers_wanted == 3
    model.wants(1, PEAK_S + 1)
    assert model.workers_wanted == 1


def test_a_request_may_ask_how_long_the_model_is_kept() -> None:
    model = standing()
    assert model.keep_alive_s == 60

    model.workload = Workload(keep_alive_s=-1)
    assert model.keep_alive_s == math.inf
    model.workload = Workload(keep_alive_s=0)
    assert model.keep_alive_s == 0


def test_a_paused_model_and_one_that_other_hosts_serve_is_not_loaded() -> None:
    def has_work(load: Workload, ready: int = 0) -> bool:
        model = standing()
        model.workload = load
        return model.planned(KNOWN, Pauses(), ready).has_work

    assert has_work(ONE)
    assert not has_work(replace(ONE, paused=True))
    assert not has_work(replace(ONE, workers=1))
    assert has_work(replace(ONE, workers=1), ready=1)


def test_a_model_and_its_adapters_have_one_workload() -> None:
    other = replace(ONE, running={Priority.BATCH: 2}, expires_s=7, keep_alive_s=30, workers=1)

    both = combined([ONE, other, Workload()])

    assert both.waiting[Priority.STANDARD] == WaitingJobs(jobs=2, tokens=20, oldest_s=3)
    assert (both.running, both.expires_s, both.keep_alive_s, both.workers) == ({Priority.BATCH: 2}, 7, 30, 1)


def test_what_was_measured_of_another_table_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    Memory.read(path).note("plain", "old", host_bytes=5, kept_until_s=9.0)

    memory = Memory.read(path)

    assert memory.of("plain", "old").host_bytes == 5
    assert memory.of("plain", "new") == Remembered(kept_until_s=9)
    path.write_text("broken")
    assert Memory.read(path).models == {}


def test_a_model_without_workers_is_configured_or_failed(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, Memory.read(tmp_path / "learnt.json"), {})
    model = standing()

    before = hosted_model("h", model, fleet, KNOWN, idle_since_s=0, now=100)
    model.failed("there is no folder", 100)
    after = hosted_model("h", model, fleet, KNOWN, idle_since_s=0, now=100)

    assert (before.state, before.since_s, before.memory_bytes, before.load_s) == (HostedState.CONFIGURED, 50, 100, 4)
    assert (after.state, after.reason) == (HostedState.FAILED, "there is no folder")


def test_a_model_whose_table_was_mended_is_loaded_at_once() -> None:
    model = standing()
    model.failed("no such folder", 100)

    model.respecify(replace(model.spec, keep_alive_s=1))
    assert model.reason == "no such folder"  # its workers are started as before
    assert model.not_before_s > 100
    model.respecify(replace(model.spec, digest="another"))

    assert (model.reason, model.failures, model.not_before_s) == ("", 0, 0)


def test_a_load_is_told_as_far_as_its_worker_knows_and_else_by_the_last_one(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, Memory.read(tmp_path / "learnt.json"), {"PATH": ""})
    model = standing()
    load = Load(model="plain", devices=(), takes={}, turn_s=0, why="test")
    fleet.start(load, replace(model.spec, arguments=("--help",)), 97.9)
    (worker,) = fleet
    there = {PROGRESS_FILE: str(tmp_path / f"{worker.record.id}.progress")}

    def told() -> tuple[str, float, bool]:
        found = hosted_model("h", model, fleet, KNOWN, idle_since_s=0, now=100)
        return found.phase, found.progress, found.estimated

    assert told() == ("starting", 0.5, True)  # the last one took 4 s
    tell(WEIGHTS, 0.33, there)
    assert told() == ("weights", 0.3, False)
    tell(WARM_UP, environment=there)
    assert told() == ("warm-up", 0.5, True)
    worker.kill()
    assert worker.child
    worker.child.wait()
    worker.forget()
    assert read(Path(there[PROGRESS_FILE])) == ("", None)
