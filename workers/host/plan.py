"""The plan of a host: which models are loaded, woken and unloaded now, from what is asked of them and where they fit.
Pure: the same input gives the same plan, and time comes in as a number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.domain.hosting import When
from workers.host.actions import Action, Load, Plan, Refuse, Sleep, Unload, Wake
from workers.host.machine import HOST, Bytes, Loading, Machine, PlannedModel, PlannedWorker, WorkerState
from workers.host.turns import Rules, Tier, Want, is_fixed, want_of, yields
from workers.host.vacancy import Memories, Place, Victim, needs_of, places, waking

PRESENT = (WorkerState.LOADING, WorkerState.READY)


def plan(
    machine: Machine, models: Sequence[PlannedModel], workers: Sequence[PlannedWorker], now: float, rules: Rules
) -> Plan:
    """Return what to do now. Workers of models that are not among `models` are unloaded after their running jobs."""
    planning = _Planning(machine, {each.name: each for each in models}, workers, now, rules)
    planning.unload_unwanted()
    pressing = planning.wants(lambda tier: tier <= Tier.LIVE)
    for want in [want for want in pressing if not planning.serve(want) and want.tier > Tier.OVERDUE]:
        planning.keep_for(want)
    others = planning.wants(lambda tier: tier > Tier.LIVE)
    for want in others:
        planning.serve(want)
    waiting = pressing or others or any(each.has_work for each in models)
    return Plan(actions=tuple(planning.actions), again_s=rules.tick_s if waiting else planning.unload_in_s())


@dataclass(slots=True)
class _Planning:
    machine: Machine
    models: dict[str, PlannedModel]
    workers: Sequence[PlannedWorker]
    now: float
    rules: Rules
    actions: list[Action] = field(default_factory=list)
    memories: Memories = field(init=False)
    _going: set[str] = field(default_factory=set)  # workers that have something else to do from now on
    _loads: int = 0

    def __post_init__(self) -> None:
        self.memories = Memories(self.machine, self.workers)
        self._loads = sum(each.state is WorkerState.LOADING for each in self.workers)

    def present(self, model: PlannedModel) -> list[PlannedWorker]:
        """Return the workers that serve the model, or soon will."""
        return [each for each in self._staying if each.model == model.name and each.state in PRESENT]

    def wants(self, counts: Callable[[Tier], bool]) -> list[Want]:
        """Return what is wanted of the tiers that count, the most pressing first."""
        found = [want_of(each, len(self.present(each)), self.now, self.rules) for each in self.models.values()]
        return sorted((each for each in found if each and counts(each.tier)), key=lambda each: each.order)

    def unload_unwanted(self) -> None:
        """Unload workers whose model left the file, or was idle for its keep-alive, or wants fewer. Nobody counts on
        the memory of a spare worker, since it may be busy for long."""
        spare: dict[str, PlannedWorker] = {}
        for worker in self.workers:
            if worker.state not in (WorkerState.READY, WorkerState.ASLEEP):
                continue
            model = self.models.get(worker.model)
            if model is None:
                self._unload(worker, When.RUNNING, "it is not in the file any more")
            elif _may_end(model, self.now) and self.now - model.idle_since_s >= model.keep_alive_s:
                self._unload(worker, When.IDLE, f"it was idle for {model.keep_alive_s:g} s")
            elif worker.state is WorkerState.READY and self._is_surplus(model):
                spare.setdefault(model.name, worker)

        for name, worker in spare.items():
            why = f"{self.models[name].workers_wanted} workers are enough"
            self.actions.append(Unload(worker=worker.id, when=When.IDLE, why=why))

    def unload_in_s(self) -> float:
        """Return how soon the next keep-alive ends."""
        ending = [self.models[each.model] for each in self._staying if each.model in self.models]
        left = [each.idle_since_s + each.keep_alive_s - self.now for each in ending if _may_end(each, self.now)]
        return max(min(left, default=math.inf), 0.0)

    def serve(self, want: Want) -> bool:
        """Load or wake one more worker of the model, or make room for it. Returns False if it waits for a place."""
        if self._can_never_fit(want.model):
            return True
        may_load = self._loads < self.rules.loads_max
        place = self._best(want, self._victims(want) if may_load else [])
        if place is None:
            if want.tier <= Tier.OVERDUE:
                self.keep_for(want)
            return False
        for victim in place.victims:
            self._displace(victim, want, place.needs)
        starts = may_load and not place.victims and self.memories.fits_now(place.needs)
        self.memories.take(place.needs)
        if starts:
            self._start(want, place)
        return True

    def keep_for(self, want: Want) -> None:
        """Let nobody who comes later take what a model needs that waits for a place. Otherwise small models that come
        and go could hold its place for ever, one after the other."""
        everybody = [
            Victim(worker=each, when=When.NOW, cost=(each.since_s,))
            for each in self._staying
            if each.state is not WorkerState.STOPPING
            and each.model in self.models
            and not self.models[each.model].stays(self.now)
        ]
        place = self._best(want, everybody) or next(iter(self._alone(want.model)), None)
        if place:
            self.memories.take(place.needs)

    @property
    def _staying(self) -> list[PlannedWorker]:
        return [each for each in self.workers if each.id not in self._going]

    def _is_surplus(self, model: PlannedModel) -> bool:
        ready = [each for each in self.present(model) if each.state is WorkerState.READY]
        return len(ready) > max(model.least, min(model.workers_wanted, model.most), 1)

    def _best(self, want: Want, victims: list[Victim]) -> Place | None:
        """Return the place for which least is missed, a sleeping worker's own among them."""
        asleep = [each for each in self._staying if each.model == want.model.name and each.state is WorkerState.ASLEEP]
        woken = [place for each in asleep if (place := waking(each, self.memories, victims))]
        found = places(want.model, self.machine, self.memories, victims, self._pinned(want.model))
        return min([*woken, *found], key=lambda each: each.cost, default=None)

    def _victims(self, want: Want) -> list[Victim]:
        found = []
        for worker in self._staying:
            model = self.models.get(worker.model)
            if model is None or model is want.model:
                continue
            when = self._spare_yields(worker, model, want) or yields(worker, model, want, self.now, self.rules)
            if when:
                found.append(Victim(worker=worker, when=when, cost=self._missed(worker, model)))
        return found

    def _spare_yields(self, worker: PlannedWorker, model: PlannedModel, want: Want) -> When | None:
        """A model's second worker gives its place up to whoever waits for a first."""
        ready = [each for each in self.present(model) if each.state is WorkerState.READY]
        if want.tier > Tier.LIVE or is_fixed(worker, model, self.now) or worker.state is not WorkerState.READY:
            return None
        return When.NOW if len(ready) > 1 and worker.id != min(each.id for each in ready) else None

    def _missed(self, worker: PlannedWorker, model: PlannedModel) -> tuple[float, ...]:
        """Order victims: the sleeping, the idle, a batch's and then those with live work; the least recently used
        first."""
        spare = len(self.present(model)) > 1
        rank = 0 if worker.state is WorkerState.ASLEEP else 1 if not model.has_work else 2 if spare else 3
        at_start = model.loading is Loading.AT_START
        return rank + model.has_live_work, float(at_start), model.idle_since_s, worker.since_s

    def _pinned(self, beside: PlannedModel) -> Bytes:
        """Return what pinned workers hold of each memory."""
        held: dict[str, int] = dict.fromkeys(self.machine.memories, 0)
        for worker in self._staying:
            model = self.models.get(worker.model)
            if model and model.stays(self.now) and model is not beside:
                for name, amount in worker.holds.items():
                    held[name] = held.get(name, 0) + amount
        return held

    def _can_never_fit(self, model: PlannedModel) -> bool:
        """Refuse a model that is too large for what pinned models leave of the machine."""
        if self._alone(model):
            return False
        empty = self._without_others(model)
        if len(self.machine.devices) < model.devices:
            why = f"it needs {model.devices} devices, and there are {len(self.machine.devices)}"
        else:
            needs = needs_of(model, self.machine.devices[: model.devices], self.machine, {})
            short = sorted(Memories.short(empty.now, needs))
            why = "; ".join(_shortage(name, needs[name], empty.now.get(name, 0)) for name in short)
        self.actions.append(Refuse(model=model.name, why=why))
        return True

    def _alone(self, model: PlannedModel) -> list[Place]:
        return places(model, self.machine, self._without_others(model), (), self._pinned(model))

    def _without_others(self, model: PlannedModel) -> Memories:
        """Return what is there for the model beside pinned ones."""
        pinned = [each for each in self._staying if each.model in self.models and self.models[each.model].pinned]
        return Memories(self.machine, [each for each in pinned if each.model != model.name])

    def _start(self, want: Want, place: Place) -> None:
        self._loads += 1
        turn_s = self.rules.turn_max_s if want.tier is Tier.OVERDUE and not want.live else 0.0
        if place.worker:
            self._going.add(place.worker.id)
            self.actions.append(Wake(worker=place.worker.id, turn_s=turn_s, why=_reason(want)))
        else:
            name = want.model.name
            load = Load(model=name, devices=place.devices, takes=place.needs, turn_s=turn_s, why=_reason(want))
            self.actions.append(load)

    def _displace(self, victim: Victim, want: Want, needs: Bytes) -> None:
        """Put the worker to sleep if its memory can be kept elsewhere, and what is left leaves room for what is needed;
        else unload it."""
        worker, why = victim.worker, f"{want.model.name} needs the memory: {_reason(want)}"
        asleep = worker.takes_asleep
        kept = {name: asleep.get(name, 0) - worker.takes.get(name, 0) for name in asleep} if asleep else {}
        sleeps = asleep is not None and worker.state is WorkerState.READY and self._sleep_helps(kept)
        sleeps = sleeps and not Memories.short(self._left_beside(asleep or {}), needs)
        if not sleeps:
            self._unload(worker, victim.when, why)
            return
        self._going.add(worker.id)
        self.memories.vacate({name: -amount for name, amount in kept.items()})
        self.actions.append(Sleep(worker=worker.id, when=victim.when, why=why))

    def _left_beside(self, asleep: Bytes) -> dict[str, int]:
        """Return what is left of each memory beside a worker that sleeps."""
        return {name: total - asleep.get(name, 0) for name, total in self.machine.memories.items()}

    def _sleep_helps(self, kept: Bytes) -> bool:
        more = {name: amount for name, amount in kept.items() if amount > 0}
        frees = any(amount < 0 for name, amount in kept.items() if name != HOST)
        return frees and self.memories.fits_now(more) and self.memories.fits_later(more)

    def _unload(self, worker: PlannedWorker, when: When, why: str) -> None:
        self._going.add(worker.id)
        self.memories.vacate(worker.holds)
        self.actions.append(Unload(worker=worker.id, when=when, why=why))


def _may_end(model: PlannedModel, now: float) -> bool:
    """True if the model goes when it was idle for its keep-alive."""
    return not (model.has_work or model.stays(now) or model.ordered or model.loading is Loading.AT_START)


def _shortage(name: str, needed: int, there: int) -> str:
    what = "main memory" if name == HOST else f"memory of device {name}"
    return f"it needs {needed / 2**30:.1f} GiB of {what}, and pinned models leave {there / 2**30:.1f}"


def _reason(want: Want) -> str:
    waiting = sum(each.jobs for each in want.model.waiting.values())
    return {
        Tier.ORDERED: "an operator asked for it",
        Tier.OVERDUE: f"{waiting} jobs have waited long for it",
        Tier.DUE: f"{waiting} jobs wait for it",
        Tier.LIVE: f"{waiting} jobs wait for it",
        Tier.BATCH: f"{waiting} jobs of batches wait for it",
        Tier.REPLICA: f"{want.model.workers_wanted} workers are wanted",
        Tier.RESIDENT: "there is room for it",
    }[want.tier]
