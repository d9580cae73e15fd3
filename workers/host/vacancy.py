"""Finds the place where a model fits, and the workers that have to go for it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.domain.hosting import When
from workers.host.machine import HOST, NOTHING, Bytes, Machine, PlannedModel, PlannedWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A worker that would go for another model. `cost` is the lower, the less it is missed."""

    worker: PlannedWorker
    when: When
    cost: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place where a model fits. It takes `needs` from what is free; `devices` are those of a new worker, and `worker`
    is the one that wakes instead. The victims must have gone first."""

    devices: tuple[str, ...]
    needs: Bytes
    victims: tuple[Victim, ...] = ()
    worker: PlannedWorker | None = None

    @property
    def cost(self) -> tuple[int, tuple[float, ...], bool]:
        """Fewer are missed, first of those who are missed most; then a worker is woken rather than loaded."""
        return len(self.victims), max((each.cost for each in self.victims), default=()), self.worker is None


class Memories:
    """The bytes of each memory that nobody holds: now, and once all workers that are stopping have gone."""

    def __init__(self, machine: Machine, workers: Iterable[PlannedWorker]) -> None:
        self.now = dict(machine.memories)
        self.later = dict(machine.memories)
        for worker in workers:
            self.add(self.now, worker.holds, -1)
            self.add(self.later, worker.will_hold, -1)

    def fits_now(self, needs: Bytes) -> bool:
        return not self.short(self.now, needs)

    def fits_later(self, needs: Bytes) -> bool:
        return not self.short(self.later, needs)

    def take(self, needs: Bytes) -> None:
        """Keep these bytes for somebody: nobody else gets them, not even before they are free."""
        self.add(self.now, needs, -1)
        self.add(self.later, needs, -1)

    def vacate(self, given: Bytes) -> None:
        """Count on bytes that a worker is told to give back."""
        self.add(self.later, given, 1)

    @staticmethod
    def short(free: Bytes, needs: Bytes) -> set[str]:
        """Return the memories that have less than is needed of them."""
        return {name for name, needed in needs.items() if needed > max(free.get(name, 0), 0)}

    @staticmethod
    def add(free: dict[str, int], given: Bytes, sign: int) -> None:
        for name, amount in given.items():
            free[name] = free.get(name, 0) + sign * amount


def needs_of(model: PlannedModel, devices: Sequence[str], machine: Machine, pinned: Bytes) -> Bytes:
    """Return the bytes that a worker takes there. What nobody knows yet is all that no pinned model holds."""

    def needed(name: str, amount: int | None) -> int:
        return max(machine.memories.get(name, 0) - pinned.get(name, 0), 0) if amount is None else amount

    needs = {HOST: needed(HOST, model.host_bytes)}
    return needs | {device: needed(device, model.device_bytes) for device in devices}


def place_on(needs: Bytes, devices: Sequence[str], memories: Memories, victims: Sequence[Victim]) -> Place | None:
    """Return the place on these devices for the least that is missed; None if it does not fit even without all
    victims."""
    free, chosen = dict(memories.later), []
    for victim in sorted(victims, key=lambda each: each.cost):
        if not (short := Memories.short(free, needs)):
            break
        if short & {name for name, held in victim.worker.holds.items() if held}:
            chosen.append(victim)
            Memories.add(free, victim.worker.holds, 1)
    if Memories.short(free, needs):
        return None
    return Place(devices=tuple(devices), needs=needs, victims=tuple(_needed(chosen, free, needs)))


def _needed(chosen: list[Victim], free: dict[str, int], needs: Bytes) -> list[Victim]:
    """Leave out whoever need not go after all, beginning with who is missed most."""
    kept = list(chosen)
    for victim in reversed(chosen):
        without = dict(free)
        Memories.add(without, victim.worker.holds, -1)
        if not Memories.short(without, needs):
            kept.remove(victim)
            free = without
    return kept


def places(
    model: PlannedModel, machine: Machine, memories: Memories, victims: Sequence[Victim], pinned: Bytes
) -> list[Place]:
    """Return where a new worker of the model would fit, the best place first; [] if nowhere."""
    if not model.devices:
        needs = needs_of(model, (), machine, pinned)
        found = place_on(needs, (), memories, victims)
        return [found] if found else []
    single = [
        (place.cost, device)
        for device in machine.devices
        if (place := place_on(needs_of(model, [device], machine, pinned), [device], memories, victims))
    ]
    # Of two devices that fit, the fuller one keeps the emptier one for a larger model.
    order = sorted(single, key=lambda each: (each[0], memories.later.get(each[1], 0), each[1]))
    devices = tuple(device for _, device in order[: model.devices])
    if len(devices) < model.devices:
        return []
    found = place_on(needs_of(model, devices, machine, pinned), devices, memories, victims)
    return [found] if found else []


def waking(worker: PlannedWorker, memories: Memories, victims: Sequence[Victim]) -> Place | None:
    """Return what must go for the sleeping worker to wake where it is."""
    asleep = worker.takes_asleep or NOTHING
    needs = {name: max(held - asleep.get(name, 0), 0) for name, held in worker.takes.items()}
    others = [each for each in victims if each.worker.id != worker.id]
    found = place_on(needs, (), memories, others)
    return Place(devices=(), needs=needs, victims=found.victims, worker=worker) if found else None
