"""`penstock jobs rerun` and `compare`: any kept job once more, with changes, and two jobs side by side."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from pydantic import ValidationError

from api.schemas.admin import RerunChanges
from cli.backend import Backend, json_option, with_backend
from cli.click_types import Age
from cli.parameters import Parameters
from cli.terminal import echo, echo_json, table
from shared.catalog.comparison import Written
from shared.catalog.comparison import compare as comparison_of
from shared.catalog.replay import EVERY_MODEL, Replayer
from shared.catalog.rerun import RERUN_MAX, Changes, Rerunner, Selection
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.job import Priority
from shared.domain.lifecycle import State


@click.command()
@click.argument("job_ids", nargs=-1)
@click.option("--model", "-m", help="Run the jobs of this model again.")
@click.option("--all", "everything", is_flag=True, help="Run the jobs of all models again.")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in State]),
    default="finished",
    show_default=True,
    help="With --model or --all: the state of the jobs.",
)
@click.option("--since", "since_s", type=Age(), help="Only jobs that came within this time: 90s, 15m, 2h or 3d.")
@click.option("--tenant", help="Only jobs of this tenant, as `penstock jobs show` names it.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, RERUN_MAX), help="At most this many, the newest."
)
@click.option("--to-model", help="Run them as jobs of this model, or of this adapter.")
@click.option("--priority", type=click.Choice([str(each) for each in Priority]), help="The class of the new jobs.")
@click.option("--set", "assignments", multiple=True, help="A sampling parameter: temperature=0.2, seed=7, ...")
@click.option("--dry-run", is_flag=True, help="Print the jobs that would be run again, and change nothing.")
@click.pass_obj
def rerun(
    redis_url: str | None,
    job_ids: Sequence[str],
    model: str | None,
    everything: bool,
    state: str,
    since_s: float | None,
    tenant: str | None,
    limit: int,
    to_model: str | None,
    priority: str | None,
    assignments: Sequence[str],
    dry_run: bool,
) -> None:
    """Run kept jobs again as new jobs, with changes.

    The jobs themselves stay as they are, and each new one names the job whose request it has. One job keeps its class;
    several are run as batch. Requests of jobs that did not fail are kept only with PENSTOCK_KEEP_REQUESTS. The exit
    status is 1 if a job given by its id could not be run again."""
    if bool(job_ids) == bool(model or everything):
        raise click.UsageError("give either the ids of jobs, or --model or --all")
    changes = _changes(Parameters(assignments).values, to_model, priority)
    wanted = Selection(model=model or EVERY_MODEL, state=State(state), since_s=since_s, tenant=tenant, limit=limit)

    async def rerun_chosen(backend: Backend) -> None:
        if model:
            await backend.require_model(model)
        replayer = Replayer(backend.queue, backend.job_records, backend.model_registry, backend.api_keys)
        rerunner = Rerunner(backend.queue, backend.job_records, replayer, backend.settings)
        chosen = list(job_ids) or await rerunner.find(wanted)
        if dry_run:
            echo("\n".join([*chosen, f"{len(chosen)} would be run again"]))
            return
        if len(job_ids) == 1:
            echo(f"{job_ids[0]} run again as {(await rerunner.rerun(job_ids[0], changes)).job_id}")
            return
        refused = 0
        async for each in rerunner.rerun_all(chosen, changes):
            refused += not each.job_id
            echo(f"{each.origin} {f'run again as {each.job_id}' if each.job_id else f'not run again: {each.refusal}'}")
        if job_ids and refused:
            sys.exit(1)

    with_backend(redis_url, rerun_chosen)


def _changes(sampling: Mapping[str, Any], to_model: str | None, priority: str | None) -> Changes:
    """Return the changes. Raises InvalidRequest, which names the parameter."""
    try:
        return RerunChanges(**{**sampling, "to_model": to_model, "priority": priority}).changes()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"--set {name}: {first['msg']}", param=name) from error


@click.command()
@click.argument("job_id")
@click.argument("other", required=False)
@json_option
@click.pass_obj
def compare(redis_url: str | None, job_id: str, other: str | None, as_json: bool) -> None:
    """Compare two jobs side by side: figures, finish reasons, and the difference of their texts.

    Without a second job, a job is compared with the one that it replays, with its replay, or with what it wrote before
    `rq requeue`."""

    async def print_comparison(backend: Backend) -> None:
        one, two = await _both(backend, job_id, other)
        found = comparison_of(one, two)
        if as_json:
            echo_json(found)
            return
        before, after = found["jobs"]
        echo(table(("", "BEFORE", "AFTER"), [(name, _cell(before[name]), _cell(after[name])) for name in before]))
        echo("\n".join(found["diff"]) or "both outputs are the same")
        if found["truncated"]:
            echo("(the difference is cut off)")

    with_backend(redis_url, print_comparison)


async def _both(backend: Backend, job_id: str, other: str | None) -> tuple[Written, Written]:
    """Read the two jobs, the older one first. Raises NotFound if there is nothing to compare with."""
    record = await backend.job_records.record(job_id)
    names = (job_id, other) if other else (record.replay_of or job_id, record.replayed_as or job_id)
    old, new = await backend.channel.read([(name, 0) for name in names])
    before = old.events if names[0] != names[1] else await backend.channel.previous(job_id)
    if not before and not other:
        raise NotFound(f"The job {job_id} was never replayed.")
    records = [await backend.job_records.record(name) for name in names]
    return Written(record=records[0], events=before), Written(record=records[1], events=new.events)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
