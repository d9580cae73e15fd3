"""`python -m bench.chaos` injects faults under load and prints a verdict. `--release` runs the long form; `--only F8
--seed 7` repeats a fault that failed."""

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import redis

from bench.chaos import torch_script
from bench.chaos.act import Act
from bench.chaos.engine_kinds import PACKAGES, pythons
from bench.chaos.judge import RECORDS, Verdict, judge, leftovers
from bench.chaos.load import Asked, Load
from bench.chaos.mixed_site import MixedSite
from bench.chaos.report import bars, summary, timeline
from bench.chaos.scenarios import MIXED_SCENARIOS, SCENARIOS, TORCH_SCENARIOS, Scenario
from bench.chaos.site import Site, WorkerGroup

ROOT = Path(__file__).parents[2]
WARM_S = 0.7
RQ_LIES = """
local lies = {}
for _, id in ipairs(redis.call('LRANGE', 'rq:queue:' .. ARGV[1], 0, -1)) do
  local status = redis.call('HGET', 'rq:job:' .. id, 'status')
  if status ~= 'queued' then lies[#lies + 1] = id .. ' is listed as waiting, and ' .. tostring(status) end
end
for _, member in ipairs(redis.call('ZRANGE', 'rq:wip:' .. ARGV[1], 0, -1)) do
  local id, exec = string.match(member, '^(.*):(.*)$')
  local job = redis.call('HMGET', 'rq:job:' .. id, 'status', 'exec')
  if job[1] ~= 'started' or job[2] ~= exec then
    lies[#lies + 1] = id .. ' is listed as running, and ' .. tostring(job[1])
  end
end
return lies
"""
QUIET_S = {False: 10.5, True: 60.0}
SETTINGS = {
    "scripted_step_ms": 20,
    "scripted_tokens": 10**6,
    "step_timeout_s": 2,
    "drain_s": 2,
    "job_ttl_s": 3600,
    "context_length": 20_000,
}


async def campaign(
    scenarios: list[Scenario],
    *,
    engine: str,
    code: Path,
    seed: int,
    release: bool,
    folder: Path,
    python_of: Mapping[str, str],
) -> tuple[Verdict, dict[str, Verdict]]:
    site = _site(engine, folder, code, python_of)
    total, by_name = Verdict(), dict[str, Verdict]()
    try:
        await site.start()
        script = await _script(site, engine)
        watching = asyncio.create_task(watch_rq(site, total))
        for scenario in scenarios:
            began = time.monotonic()
            verdict = await play(site, scenario, seed=seed, release=release, script=script)
            by_name[scenario.name] = verdict
            total.add(verdict)
            click.echo(summary(scenario.name, scenario.what, verdict, time.monotonic() - began))
        await asyncio.sleep(QUIET_S[release])
        total.blame("I6", await asyncio.to_thread(lambda: list(leftovers(site))))
        watching.cancel()
    finally:
        await site.stop()
    return total, by_name


def _site(engine: str, folder: Path, code: Path, python_of: Mapping[str, str]) -> Site:
    match engine:
        case "scripted":
            return Site(folder, code, groups=[WorkerGroup(model="scripted", count=4)], settings=SETTINGS)
        case "mixed":
            return MixedSite(folder, code, python_of=python_of)
        case _:
            return Site(folder, code, groups=[torch_script.WORKERS], settings=torch_script.SETTINGS)


async def _script(site: Site, engine: str) -> list[Asked]:
    """Return the load's requests with their right answers; none for the scripted engine, whose answers are known."""
    if isinstance(site, MixedSite):
        return await site.undisturbed()
    return await torch_script.undisturbed(site) if engine != "scripted" else []


async def play(site: Site, scenario: Scenario, *, seed: int, release: bool, script: Sequence[Asked]) -> Verdict:
    rng = random.Random(f"{seed} {scenario.name}")
    load = Load(
        site, seed=rng.getrandbits(30), clients=scenario.clients, tokens=scenario.tokens[release], script=script
    )
    act = Act(site=site, load=load, rng=rng, rounds=scenario.rounds[release] or max(scenario.rounds), long=release)
    load.start()
    await asyncio.sleep(WARM_S)
    await scenario.run(act)
    await load.ended()
    # The API notices clients that left, and jobs without a reader run to their end.
    leases = [f"penstock:leases:{model}" for model in site.models]
    await site.until(lambda: not site.client.exists(*leases), "the last jobs end", seconds=60)
    await act.muster()
    verdict = await asyncio.to_thread(judge, site, load.stories, scenario.mercy)
    act.measure(verdict)
    for found in verdict.violations.values():
        for text in found[:3]:
            click.echo(timeline(site, text))
    forget(site)
    return verdict


async def watch_rq(site: Site, total: Verdict) -> None:
    """Compare the counts of `rq info` with the jobs themselves, in one atomic script."""
    while True:
        with suppress(redis.RedisError):
            for model in site.models:
                lies: Any = await asyncio.to_thread(site.client.eval, RQ_LIES, 0, model)
                total.blame("RQ", lies)
        await asyncio.sleep(0.5)


def forget(site: Site) -> None:
    """Delete the jobs of a scenario, so that the next one is judged by its own jobs."""
    names = ("job", "results", "f*ed", "canceled")
    for pattern in [*(f"rq:{name}:*" for name in names), *(f"penstock:{name}:*" for name in RECORDS)]:
        for key in site.client.scan_iter(pattern, count=1000):
            site.client.delete(key)


def _interpreters(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    given = dict[str, str]()
    for value in values:
        engine, equals, path = value.partition("=")
        if not equals or engine not in PACKAGES or not Path(path).is_file():
            raise click.BadParameter(
                f"{value}: it must be {' or '.join(PACKAGES)}, '=' and the path of a file", param=option
            )
        given[engine] = str(Path(path).absolute())
    return given


def _partakers(python_of: Mapping[str, str]) -> str:
    """Name the engines that take part, and those that do not."""
    without = [
        f"{engine} DOES NOT TAKE PART (give --python {engine}=PATH)" for engine in PACKAGES if engine not in python_of
    ]
    return ", ".join(["scripted, native, upstream (tokens, prefill, restart), command, class", *python_of, *without])


@click.command()
@click.option("--release", is_flag=True, help="Run the long form: 3,000 jobs hit, a million tokens.")
@click.option("--only", multiple=True, help="Play only this fault, such as F1. May be repeated.")
@click.option(
    "--engine",
    type=click.Choice(["scripted", "builtin", "mixed"]),
    default="scripted",
    show_default=True,
    help="Engine of the workers; mixed is every kind of engine side by side.",
)
@click.option(
    "--python",
    "interpreters",
    multiple=True,
    metavar="ENGINE=PATH",
    callback=_interpreters,
    help="Python interpreter that has the packages of vllm or llamacpp, for --engine mixed. May be repeated.",
)
@click.option("--seed", type=int, default=2026, show_default=True, help="Seed of every choice.")
@click.option("--code", type=click.Path(path_type=Path), default=ROOT, help="Folder of the Penstock to test.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the verdict to this file, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the logs and the data.")
def main(
    release: bool,
    only: tuple[str, ...],
    engine: str,
    interpreters: dict[str, str],
    seed: int,
    code: Path,
    out: Path | None,
    keep: bool,
) -> None:
    """Inject faults and judge the result. The exit status is 1 if an invariant does not hold."""
    if interpreters and engine != "mixed":
        raise click.UsageError("--python is for --engine mixed alone.")
    scenarios = {"scripted": SCENARIOS, "builtin": TORCH_SCENARIOS, "mixed": MIXED_SCENARIOS}[engine]
    chosen = [each for each in scenarios if (each.name in only if only else each.rounds[release])]
    python_of = pythons(interpreters)
    kinds = _partakers(python_of) if engine == "mixed" else engine
    click.echo(f"engines: {kinds}")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    total, by_name = asyncio.run(
        campaign(
            chosen,
            engine=engine,
            code=code.resolve(),
            seed=seed,
            release=release,
            folder=folder / "site",
            python_of=python_of,
        )
    )
    if not keep and not total.violations:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(bars(total, seconds=time.monotonic() - began, seed=seed, release=release))
    if out:
        told = {name: asdict(verdict) for name, verdict in by_name.items()}
        out.write_text(
            json.dumps(
                {"seed": seed, "release": release, "engines": kinds, "total": asdict(total), "faults": told}, indent=1
            )
        )
    sys.exit(int(bool(total.violations)))


if __name__ == "__main__":
    main()
