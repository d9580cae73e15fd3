"""`penstock top` fits on narrow screens and is not fooled by hostile names."""

import io
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cli.top import UNBOUNDED, Snapshot, WorkerRecord, render
from shared.catalog.demand import Demand
from shared.catalog.job_records import JobRecord
from shared.domain.hosting import HostedModel, HostedState
from shared.domain.job import Priority
from shared.domain.lifecycle import State

JOB_ID = "chatcmpl-0123456789abcdef0123456789abcdef"
LONG = "organisation/a-model-with-a-very-long-name-7b-instruct"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def snapshot(name: str) -> Snapshot:
    demand = Demand(
        model=name,
        waiting_jobs=dict.fromkeys(Priority, 3333),
        waiting_tokens=20_000_000,
        running_jobs=1234,
        oldest_s=12345.6,
        workers=100,
        worker_tokens_s=10.0,
        worker_jobs=32,
    )
    worker = WorkerRecord(name=f"{name}-4711", models=name, state="busy", host=name, pid=1, done=123456, failed=12345)
    job = JobRecord(
        id=JOB_ID,
        model=name,
        state=State.STARTED,
        attempts=1,
        enqueued_at="2026-11-24T10:00:00.000000Z",
        started_at="2026-11-24T10:00:00.000000Z",
        ended_at="",
        worker=name,
        traceback="",
        payload="",
        view="",
        tenant=name,
        priority=Priority.BATCH,
        replay_of="",
        counts_cost=False,
        replayed_as="",
        not_before_ms=0,
        due_ms=0,
        timeline=[],
    )
    return Snapshot(at=1.0, demands=[demand], paused={name}, hosted={}, workers=[worker], started=[job])


def shown(name: str, width: int) -> str:
    return drawn(snapshot(name), width)


def drawn(now: Snapshot, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(render(now, None, 10, width=width))
    return out.getvalue()


def test_a_models_state_on_its_host_is_shown() -> None:
    hosted = HostedModel(host="h", model="m", state=HostedState.LOADING, since_s=1, phase="weights", progress=0.42)
    now = replace(snapshot("m"), paused=set(), hosted={"m": hosted})

    assert "loading weights 40 %" in drawn(now, 160).splitlines()[1]
    estimated = replace(hosted, phase="warm-up", estimated=True)
    assert "loading warm-up (about 40 %)" in drawn(replace(now, hosted={"m": estimated}), 160)
    assert "failed" in drawn(replace(now, hosted={"m": replace(hosted, state=HostedState.FAILED)}), 80)


def test_80_columns_are_enough_and_cut_no_id_and_no_number() -> None:
    lines = shown(LONG, 80).splitlines()

    assert max(map(len, lines)) <= 80
    for whole in (JOB_ID, "20000000", "12345.6 s", "9999", "1234", "paused", "123456", "12345", "10:00:00"):
        assert any(whole in line for line in lines), whole
    assert sum(map(len, lines)) > 0
    assert len(lines) == 8  # no row takes two lines


def test_the_documentation_shows_every_table_that_is_printed() -> None:
    page = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    sample = [line.split() for line in page.partition("$ penstock top --once\n")[2].partition("```")[0].splitlines()]

    titles = [
        line.split() for line in shown("m", UNBOUNDED).splitlines() if line.split()[:1] and line.split()[0].isupper()
    ]

    assert [line[0] for line in titles] == ["MODEL", "WORKER", "JOB"]
    assert [line for line in sample if line in titles] == titles


def test_what_is_piped_is_never_cut() -> None:
    text = shown(LONG, UNBOUNDED)

    assert "…" not in text
    for whole in (JOB_ID, LONG, f"{LONG}-4711", "batch"):
        assert whole in text


def test_names_cannot_command_the_terminal_or_its_markup() -> None:
    text = shown("\x1b[2J\u202e[red]x[/]\x9b\n", UNBOUNDED)

    assert not COMMANDS.search(text)
    assert "\\x1b[2J\\u202e[red]x[/]\\x9b" in text
