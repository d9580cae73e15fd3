"""Measures the plan of a host in simulated time: `python -m bench.host_plan`. The figures are the same on any machine.

It compares the plan with a swap at each request for another model (llama-swap's rule) and with the fewest loads of a
schedule that knows the future, and looks for a random scenario that breaks a promise."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.host_plan.bounds import broken, longest_absence_s
from bench.host_plan.jobs import End, Scenario
from bench.host_plan.optimum import Optimum
from bench.host_plan.policies import Planned, SwapOnRequest
from bench.host_plan.scenarios import agents, flood, long_answer, random_scenario, small, starved, storm
from bench.host_plan.simulation import Policy, Report, World
from shared.domain.job import Priority
from workers.host.turns import Rules

OUT = Path(__file__).parent.parent / "results" / "host-plan.json"
SLOT_S, LOAD_S = 5.0, 10.0
STORIES: dict[str, Callable[[], Scenario]] = {
    "A B A B, 100 requests each, 2 a second": storm,
    "A B A B, all at once": lambda: storm(gap_s=0.01),
    "A B A B, loads of 30 s": lambda: storm(load_s=30.0),
    "10 agents that ask A and B in turn": agents,
    "one agent that asks A and B in turn": lambda: agents(1),
    "an answer of 20 minutes": long_answer,
    "a batch of 2,000 jobs": flood,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    story: str
    policy: str
    loads: int
    ends_s: float
    live_p50_s: float
    live_p99_s: float
    away_s: float


def measured(story: str, scenario: Scenario, policy: Policy) -> Row:
    report = World(scenario, policy).run()
    assert all(job.ends == [End.DONE] for job in scenario.all_jobs), story
    live = sorted((job.ended_s or 0) - job.arrives_s for job in scenario.all_jobs if job.priority is not Priority.BATCH)
    return Row(
        story=story,
        policy="plan" if isinstance(policy, Planned) else "swap on request",
        loads=report.loads,
        ends_s=round(report.ended_s, 1),
        live_p50_s=round(live[len(live) // 2], 1),
        live_p99_s=round(live[int(len(live) * 0.99)], 1),
        away_s=round(report.longest_s(live=True), 1),
    )


def by_rules() -> list[dict[str, float]]:
    """The storm under other rules: how many loads a turn is long, and for how long nobody is overdue."""
    rows = []
    for turn_loads in (0.5, 1.0, 2.0, 4.0):
        for load_s in (3.0, 10.0, 30.0):
            row = measured("", storm(load_s=load_s, gap_s=2.0), Planned(Rules(turn_loads=turn_loads)))
            rows.append({"turn_loads": turn_loads, "load_s": load_s, "loads": row.loads, "p50_s": row.live_p50_s})
    return rows


def against_optimum(seeds: Iterable[int]) -> Counter[tuple[int, int]]:
    """Count pairs of the fewest loads and the plan's, of small scenarios with the same bounds on waiting and end."""
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in seeds:
        scenario = small(seed, slot_s=SLOT_S, load_s=LOAD_S)
        report = World(scenario, Planned()).run()
        pairs[fewest_loads(scenario, report), report.loads] += 1
    return pairs


def fewest_loads(scenario: Scenario, report: Report) -> int:
    """Return the fewest loads of a schedule that waits no longer, and ends no later, than this run did."""
    ends_s, away_s = report.ended_s + SLOT_S, report.longest_s(live=True) + SLOT_S
    optimum = Optimum(scenario.all_jobs, load_s=LOAD_S, slot_s=SLOT_S, ends_s=ends_s, away_s=away_s)
    found = optimum.loads(report.loads)
    assert found, "the run itself is such a schedule"
    return found


def tried(seeds: Iterable[int]) -> tuple[list[str], float]:
    """Return the promises that random scenarios break, and the longest absence as a share of its bound."""
    rules, found, longest = Rules(), [], 0.0
    for seed in seeds:
        scenario = random_scenario(seed)
        report = World(scenario, Planned(rules)).run()
        found += [f"seed {seed}: {each}" for each in broken(scenario, report, rules)]
        longest = max(longest, report.longest_s(live=True) / longest_absence_s(scenario, rules, live=True))
    return found, longest


@click.command()
@click.option("--seeds", default=1000, help="how many random scenarios")
@click.option("--small", "few", default=100, help="how many small ones, against the optimum")
@click.option("--out", type=click.Path(path_type=Path), default=OUT)
def main(seeds: int, few: int, out: Path) -> None:
    rows = [
        measured(story, make(), policy) for story, make in STORIES.items() for policy in (Planned(), SwapOnRequest())
    ]
    rows.append(measured("somebody wants A for 3 hours, a batch B", starved(), Planned()))
    click.echo("| | rule | loads | all done after | live answers p50 | p99 | longest without a worker |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in rows:
        times = f"{row.ends_s} s | {row.live_p50_s} s | {row.live_p99_s} s | {row.away_s} s"
        click.echo(f"| {row.story} | {row.policy} | {row.loads} | {times} |")
    rules = by_rules()
    for each in rules:
        click.echo(f"a turn of {each['turn_loads']} swaps, loads of {each['load_s']:g} s: {each}")
    pairs = against_optimum(range(few))
    fewest, ours = (sum(pair[at] * count for pair, count in pairs.items()) for at in (0, 1))
    worst = max(plan / best for best, plan in pairs)
    click.echo(f"{few} small scenarios: {ours} loads, {fewest} at least; {worst:.2f} times as many in the worst")
    problems, longest = tried(range(seeds))
    click.echo(
        f"{seeds} random scenarios: {len(problems)} broken promises; at most {longest:.0%} of the bound on waiting"
    )
    for problem in problems:
        click.echo(problem)
    out.write_text(
        json.dumps(
            {
                "stories": [asdict(row) for row in rows],
                "rules": rules,
                "optimum": {"scenarios": few, "loads": ours, "fewest": fewest, "worst": round(worst, 2)},
                "random": {"scenarios": seeds, "broken": problems, "longest_of_bound": round(longest, 3)},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
