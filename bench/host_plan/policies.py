"""One of these policies decides in a simulation: our plan, or a swap at each request for another model."""

import math

from bench.host_plan.jobs import Job
from bench.host_plan.simulation import World
from shared.domain.hosting import When
from workers.host.actions import Action, Load, Plan, Unload
from workers.host.machine import WorkerState
from workers.host.plan import plan
from workers.host.turns import Rules
from workers.host.vacancy import needs_of


class Planned:
    """The plan of workers/host."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()

    def decide(self, world: World) -> Plan:
        return plan(world.machine, world.planned(), world.planned_workers(), world.now, self.rules)

    def may_claim(self, world: World, job: Job) -> bool:
        return True


class SwapOnRequest:
    """llama-swap's rule for models of which one fits: requests go in the order in which they came. One for another
    model waits until the running ones have ended, then the model is swapped; whoever came later waits behind it."""

    def decide(self, world: World) -> Plan:
        head = _head(world)
        actions: list[Action] = []
        if head is None or world.not_before[head.model] > world.now:
            return Plan(actions=(), again_s=1.0 if head else math.inf)
        others = [each for each in world.workers if each.model != head.model]
        if not others and not any(each.model == head.model for each in world.workers):
            model = world.served[head.model].planned
            takes = needs_of(model, world.machine.devices[: model.devices], world.machine, {})
            actions.append(Load(model=head.model, devices=(), takes=takes, turn_s=0, why="a request came"))
        for each in others:
            if each.state is WorkerState.READY and not each.running:
                actions.append(Unload(worker=each.id, when=When.NOW, why=f"{head.model} needs the memory"))
        return Plan(actions=tuple(actions), again_s=1.0)

    def may_claim(self, world: World, job: Job) -> bool:
        return job is _head(world)


def _head(world: World) -> Job | None:
    waiting = [job for jobs in world.waiting.values() for job in jobs]
    return min(waiting, key=lambda job: job.arrives_s, default=None)
