"""`python -m bench.chaos` injects faults under load and prints a verdict. `--release` runs the long form; `--only F8
--seed 7` repeats a fault that failed."""

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import redis

from bench.chaos import torch_script
from bench.chaos.act import Act
from bench.chaos.judge import RECORDS, Verdict, judge, leftovers
from bench.chaos.load import Asked, Load
from bench.chaos.report import bars, summary, timeline
from bench.chaos.scenarios import SCENARIOS, TORCH_SCENARIOS, Scenario
from bench.chaos.site import Site

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
    "sequences_max": 16,
    "step_timeout_s": 2,
    "drain_s": 2,
    "job_ttl_s": 3600,
    "context_length": 20_000,
}


async def campaign(
    scenarios: list[Scenario], *, engine: str, code: Path, seed: int, release: bool, folder: Path
) -> tuple[Verdict, dict[str, Verdict]]:
    if engine == "scripted":
        site = Site(folder, code, model="scripted", workers=4, settings=SETTINGS)
    else:
        site = Site(folder, code, model="penstock-tiny", workers=torch_script.WORKERS, settings=torch_script.SETTINGS)
    total, by_name = Verdict(), dict[str, Verdict]()
    try:
        await site.start()
        script = await torch_script.undisturbed(site) if engine != "scripted" else []
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


async def play(site: Site, scenario: Scenario, *, seed: int, release: bool, script: Sequence[Asked]) -> Verdict:
    rng = random.Random(f"{seed} {scenario.name}")
    load = Load(
        site, seed=rng.getrandbits(30), clients=scenario.clients, tokens=scenario.tokens[release], script=script
    )
    act = Act(site=site, load=load, rng=rng, rounds=scenario.rounds[release], long=release)
    load.start()
    await asyncio.sleep(WARM_S)
    await scenario.run(act)
    await load.ended()
    # The API notices clients that left, and jobs without a reader run to their end.
    await site.until(lambda: not site.client.exists(f"penstock:leases:{site.model}"), "the last jobs end", seconds=60)
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
            lies: Any = await asyncio.to_thread(site.client.eval, RQ_LIES, 0, site.model)
            total.blame("RQ", lies)
        await asyncio.sleep(0.5)


def forget(site: Site) -> None:
    """Delete the jobs of a scenario, so that the next one is judged by its own jobs."""
    names = ("job", "results", "f*ed", "canceled")
    for pattern in [*(f"rq:{name}:*" for name in names), *(f"penstock:{name}:*" for name in RECORDS)]:
        for key in site.client.scan_iter(pattern, count=1000):
            site.client.delete(key)


@click.command()
@click.option("--release", is_flag=True, help="Run the long form: 3,000 jobs hit, a million tokens.")
@click.option("--only", multiple=True, help="Play only this fault, such as F1. May be repeated.")
@click.option(
    "--engine",
    type=click.Choice(["scripted", "builtin"]),
    default="scripted",
    show_default=True,
    help="Engine of the workers.",
)
@click.option("--seed", type=int, default=2026, show_default=True, help="Seed of every choice.")
@click.option("--code", type=click.Path(path_type=Path), default=ROOT, help="Folder of the Penstock to test.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the verdict to this file, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the logs and the data.")
def main(
    release: bool, only: tuple[str, ...], engine: str, seed: int, code: Path, out: Path | None, keep: bool
) -> None:
    """Inject faults and judge the result. The exit status is 1 if an invariant does not hold."""
    scenarios = SCENARIOS if engine == "scripted" else TORCH_SCENARIOS
    chosen = [scenario for scenario in scenarios if not only or scenario.name in only]
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    total, by_name = asyncio.run(
        campaign(chosen, engine=engine, code=code.resolve(), seed=seed, release=release, folder=folder / "site")
    )
    if not keep and not total.violations:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(bars(total, seconds=time.monotonic() - began, seed=seed, release=release))
    if out:
        told = {name: asdict(verdict) for name, verdict in by_name.items()}
        out.write_text(json.dumps({"seed": seed, "release": release, "total": asdict(total), "faults": told}, indent=1))
    sys.exit(int(bool(total.violations)))


if __name__ == "__main__":
    main()
