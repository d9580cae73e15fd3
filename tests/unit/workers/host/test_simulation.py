"""The plan of a host in simulated time: nothing is lost, nobody waits without end, and models are not swapped in vain.
`python -m bench.host_plan` runs more of the same."""

from bench.host_plan.__main__ import against_optimum, measured, tried
from bench.host_plan.bounds import longest_absence_s
from bench.host_plan.jobs import End
from bench.host_plan.policies import Planned, SwapOnRequest
from bench.host_plan.scenarios import agents, flood, long_answer, starved, storm
from bench.host_plan.simulation import World
from shared.domain.job import Priority
from workers.host.turns import Rules

RULES = Rules()
SEEDS, SMALL_SEEDS = 40, 30


def test_in_any_scenario_nothing_is_lost_nobody_is_forgotten_and_no_batch_goes_first() -> None:
    problems, longest = tried(range(SEEDS))

    assert problems == []
    assert longest >= 0.25, "a bound that nothing comes near proves little"


def test_a_storm_is_served_with_a_fifth_of_the_loads_in_a_third_of_the_time_of_a_swap_at_each_request() -> None:
    ours, theirs = measured("storm", storm(), Planned()), measured("storm", storm(), SwapOnRequest())

    assert theirs.loads == 200
    assert 5 * ours.loads <= theirs.loads
    assert 3 * ours.ends_s <= theirs.ends_s


def test_agents_in_turn_are_answered_no_later_than_by_a_swap_at_each_request() -> None:
    for count in (1, 10):
        ours, theirs = measured("", agents(count), Planned()), measured("", agents(count), SwapOnRequest())

        assert ours.loads <= theirs.loads
        assert ours.ends_s <= 1.02 * theirs.ends_s


def test_loads_are_few_beside_those_of_a_schedule_that_knows_the_future() -> None:
    pairs = against_optimum(range(SMALL_SEEDS))

    assert max(plan / best for best, plan in pairs) <= 2
    total = sum(plan * count for (_, plan), count in pairs.items())
    assert total <= 1.25 * sum(best * count for (best, _), count in pairs.items())


def test_an_answer_of_20_minutes_neither_blocks_others_nor_is_lost() -> None:
    scenario = long_answer()

    World(scenario, Planned(RULES)).run()

    long, *others = scenario.all_jobs
    assert long.ends == [End.DONE]
    assert max((each.ended_s or 0) - each.arrives_s for each in others) <= 30
    assert (long.ended_s or 0) <= 1.5 * long.work_s


def test_a_flood_of_batch_jobs_delays_nobody_who_waits() -> None:
    scenario = flood(300)

    World(scenario, Planned(RULES)).run()

    waits = [(job.ended_s or 0) - job.arrives_s for job in scenario.all_jobs if job.priority is Priority.INTERACTIVE]
    assert max(waits) <= 3.0 + 3.0 + 1.0  # a load, the work, and the end of the other model


def test_a_batch_gets_a_turn_while_another_model_is_wanted_all_the_time() -> None:
    scenario = starved()

    report = World(scenario, Planned(RULES)).run()

    assert all(job.ends == [End.DONE] for job in scenario.all_jobs)
    assert RULES.batch_overdue_s <= report.longest_s(live=False) <= longest_absence_s(scenario, RULES, live=False)
    assert report.loads <= 8  # a turn each hour, and the way back
