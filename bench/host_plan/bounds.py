"""The promises of the plan, as formulas, and the check that a run keeps them."""

from bench.host_plan.jobs import Scenario
from bench.host_plan.simulation import STOP_S, Report
from workers.host.turns import Rules


def longest_absence_s(scenario: Scenario, rules: Rules, *, live: bool) -> float:
    """Return how long a model that has work may be without a worker.

    It is overdue after `overdue_s` (`batch_overdue_s` if only a batch wants it), and then comes before all that became
    overdue later. Each of the models, the loaded one among them, may come before it once, and then has its turn and its
    load; a load that is in progress is not broken off. A batch waits a little more, for a moment without answers.
    """
    load_s = max(max(each.loads_s, each.planned.load_s) for each in scenario.models)
    turn_s = max(rules.turn_max_s, load_s)
    overdue_s = rules.overdue_s if live else rules.batch_patience_s
    return overdue_s + len(scenario.models) * (turn_s + load_s + STOP_S) + load_s


def broken(scenario: Scenario, report: Report, rules: Rules) -> list[str]:
    """Return what the run did not keep, as sentences."""
    jobs = scenario.all_jobs
    lost = [job for job in jobs if len(job.ends) != 1]
    found = [f"{len(lost)} of {len(jobs)} jobs did not end once"] if lost else []
    for live in (True, False):
        longest_s, most_s = report.longest_s(live=live), longest_absence_s(scenario, rules, live=live)
        if longest_s > most_s:
            found.append(f"a model was missed for {longest_s:.0f} s, {most_s:.0f} s at most, live={live}")
    return found + report.jumped
