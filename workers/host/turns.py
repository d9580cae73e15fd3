"""Whose turn it is: the order in which models get memory, and which worker gives its place up for whom. Pure.

A loaded model keeps its place while it has work, for one **turn** at least, which is long against the loads that a swap
and its way back cost. So at most a known share of the time goes into loading, whatever comes in. A model that is not
loaded waits for a turn's end, or a little if nothing says that the loaded one comes back soon."""

from dataclasses import dataclass
from enum import IntEnum

from shared.domain.hosting import When
from workers.host.machine import Loading, PlannedModel, PlannedWorker, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`turn_loads` is the length of a turn, in times of what a swap and its way back cost; it is at least `turn_min_s`
    and at most `turn_max_s`, or the load's own time if that is longer. A model whose live jobs have waited `overdue_s`
    while it was not loaded comes before all that have not, one whose batch has waited `batch_overdue_s`, too. At most
    `loads_max` workers load at a time."""

    turn_loads: float = 2.0
    turn_min_s: float = 2.0
    turn_max_s: float = 60.0
    overdue_s: float = 60.0
    batch_overdue_s: float = 3600.0
    loads_max: int = 2
    tick_s: float = 1.0

    @property
    def batch_patience_s(self) -> float:
        """Return how long an overdue batch waits for a moment without running answers before it interrupts them."""
        return self.batch_overdue_s + self.turn_max_s


class Tier(IntEnum):
    """The reasons for which a model should have one more worker, the most pressing first."""

    ORDERED = 0
    OVERDUE = 1
    DUE = 2  # it has waited long enough to take the place of a loaded model, which then may not come first again
    LIVE = 3
    BATCH = 4
    REPLICA = 5
    RESIDENT = 6  # it should be loaded whenever there is room


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A model that should have one more worker. `live` tells it from one that only a batch is for."""

    model: PlannedModel
    tier: Tier
    live: bool
    rank: float

    @property
    def order(self) -> tuple[int, float, str]:
        return self.tier, -self.rank, self.model.name


def want_of(model: PlannedModel, present: int, now: float, rules: Rules) -> Want | None:
    """Return why the model should have one more worker than the `present` ones; None if it should not."""
    if now < model.not_before_s or present >= model.most:
        return None
    if not present and model.ordered:
        return Want(model=model, tier=Tier.ORDERED, live=True, rank=0)
    if model.loading is Loading.MANUAL and not present:
        return None
    if model.has_work:
        wanted = max(model.least, min(model.workers_wanted, model.most))
        if present:
            rank = model.workers_wanted / present
            return Want(model=model, tier=Tier.REPLICA, live=False, rank=rank) if present < wanted else None
        return _first(model, now, rules)
    is_resident = model.loading is Loading.AT_START and present < model.least
    return Want(model=model, tier=Tier.RESIDENT, live=False, rank=-present) if is_resident else None


def _first(model: PlannedModel, now: float, rules: Rules) -> Want:
    live = model.has_live_work
    waited_s = model.waited_s(now, live=live)
    if waited_s >= (rules.overdue_s if live else rules.batch_overdue_s):
        return Want(model=model, tier=Tier.OVERDUE, live=live, rank=waited_s)
    if live and waited_s >= min(_swap_s(model.load_s, rules), rules.overdue_s):
        return Want(model=model, tier=Tier.DUE, live=True, rank=waited_s * model.weight)
    return Want(model=model, tier=Tier.LIVE if live else Tier.BATCH, live=live, rank=_pressure(model))


def _pressure(model: PlannedModel) -> float:
    """Waiting tokens by age and weight of their class, against the time that the load costs."""
    parts = [
        (each.tokens + each.jobs) * (1 + each.oldest_s) * priority.weight for priority, each in model.waiting.items()
    ]
    return sum(parts) / (1 + model.load_s)


def turn_s(model: PlannedModel, other: PlannedModel, rules: Rules) -> float:
    """Return how long the loaded `model` keeps its place while it has work and the other one waits."""
    return max(_swap_s(model.load_s + other.load_s, rules), model.load_s)


def _swap_s(loads_s: float, rules: Rules) -> float:
    """Return how long these loads must be worth while."""
    return max(min(rules.turn_loads * loads_s, rules.turn_max_s), rules.turn_min_s)


def is_fixed(worker: PlannedWorker, model: PlannedModel, now: float) -> bool:
    """True if nothing displaces the worker now. A manual model would not come back, so it is left its work."""
    moving = worker.state not in (WorkerState.READY, WorkerState.ASLEEP)
    return moving or model.stays(now) or (model.loading is Loading.MANUAL and model.has_work)


def yields(worker: PlannedWorker, model: PlannedModel, want: Want, now: float, rules: Rules) -> When | None:
    """Return how the worker gives its place up for the other model; None if it keeps it for now."""
    if want.tier is Tier.RESIDENT or is_fixed(worker, model, now):
        return None
    if worker.state is WorkerState.ASLEEP or want.tier is Tier.ORDERED:
        return When.NOW
    if now - worker.since_s < worker.turn_s:
        return None
    if not model.has_work and _is_left(model, want, now):
        return When.NOW
    if want.live and model.has_work and not model.has_live_work:
        return When.NOW
    if not (_may_interrupt(model, want) and _is_due(worker, model, want, now, rules)):
        return None
    if not want.live and model.runs_live and want.model.waited_s(now, live=False) < rules.batch_patience_s:
        return None
    return When.NOW


def _may_interrupt(model: PlannedModel, want: Want) -> bool:
    """True if a model that has work, or will soon have some, may have to wait for the other. A batch interrupts only
    batches, unless it has waited very long."""
    if want.tier in (Tier.OVERDUE, Tier.DUE, Tier.LIVE):
        return True
    return want.tier is Tier.BATCH and model.has_work and not model.has_live_work


def _is_left(model: PlannedModel, want: Want, now: float) -> bool:
    """True if the model without work is not expected back before it could be loaded again. A batch, which nobody looks
    at, gives it as long as the loads cost; somebody who waits does so only if its pauses have been shorter lately."""
    idle_s, cost_s = now - model.idle_since_s, model.load_s + want.model.load_s
    comes_back = idle_s < cost_s and (not want.live or model.gap_s < cost_s)
    return not comes_back


def _is_due(worker: PlannedWorker, model: PlannedModel, want: Want, now: float, rules: Rules) -> bool:
    """True if the loaded model has had its turn and the other one has waited as long."""
    turn = turn_s(model, want.model, rules)
    waited_s = want.model.waited_s(now, live=want.live)
    if want.live and want.model.expires_s < want.model.load_s + turn:
        turn = min(turn, max(model.load_s, rules.turn_min_s))
        waited_s = turn
    return now - worker.since_s >= turn and waited_s >= min(turn, rules.overdue_s)
