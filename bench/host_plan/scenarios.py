"""Scenarios for the plan of a host: one for each figure, and any number of random ones."""

import math
import random
from collections.abc import Sequence

from bench.host_plan.jobs import Job, Scenario, Served
from shared.domain.job import Priority
from workers.host.machine import HOST, Loading, Machine, PlannedModel

GIB = 2**30
ROOM_FOR_ONE = Machine(memories={HOST: 10 * GIB})
INTERACTIVE, STANDARD, BATCH = Priority


def served(
    name: str, *, gib: int = 6, load_s: float = 3.0, believed_s: float | None = None, **fields: object
) -> Served:
    """A model in main memory, of which ROOM_FOR_ONE holds one."""
    own = {key: fields.pop(key) for key in ("places", "fails", "wakes_s", "takes_asleep") if key in fields}
    usual: dict[str, object] = {"host_bytes": gib * GIB, "load_s": load_s if believed_s is None else believed_s}
    planned = PlannedModel(name=name, **usual | fields)  # type: ignore[arg-type]
    return Served(planned=planned, loads_s=load_s, **own)  # type: ignore[arg-type]


def storm(requests: int = 100, *, gap_s: float = 0.5, work_s: float = 2.0, load_s: float = 3.0) -> Scenario:
    """A B A B: so many requests for each of two models, in turn."""
    jobs = [Job("ab"[at % 2], at * gap_s, work_s) for at in range(2 * requests)]
    return Scenario(machine=ROOM_FOR_ONE, models=[served("a", load_s=load_s), served("b", load_s=load_s)], jobs=jobs)


def agents(count: int = 10, rounds: int = 20, *, work_s: float = 2.0, pause_s: float = 0.2) -> Scenario:
    """Agents that ask A, then B with the answer, then A again; every other one begins with B."""
    firsts = []
    for agent in range(count):
        job = None
        for at in reversed(range(rounds)):
            job = Job("ab"[(at + agent) % 2], agent * 0.3, work_s, then=job, pause_s=pause_s)
        assert job
        firsts.append(job)
    return Scenario(machine=ROOM_FOR_ONE, models=[served("a"), served("b")], jobs=firsts)


def long_answer(minutes: float = 20.0) -> Scenario:
    """An answer of A takes 20 minutes, and somebody wants B each minute."""
    others = [Job("b", 60.0 * at + 5, 2.0) for at in range(int(minutes))]
    return Scenario(
        machine=ROOM_FOR_ONE, models=[served("a"), served("b")], jobs=[Job("a", 0.0, minutes * 60), *others]
    )


def flood(jobs: int = 2000) -> Scenario:
    """A batch of A floods the queue, while somebody wants B now and then."""
    batch = [Job("a", 0.0, 10.0, BATCH) for _ in range(jobs)]
    live = [Job("b", 50.0 + 37.0 * at, 3.0, INTERACTIVE) for at in range(20)]
    return Scenario(machine=ROOM_FOR_ONE, models=[served("a"), served("b")], jobs=[*batch, *live])


def starved(hours: float = 3.0) -> Scenario:
    """Somebody wants A all the time, and a batch waits for B."""
    live = [Job("a", 1.5 * at, 2.0, INTERACTIVE) for at in range(int(hours * 2400))]
    batch = [Job("b", 10.0, 30.0, BATCH) for _ in range(40)]
    return Scenario(machine=ROOM_FOR_ONE, models=[served("a"), served("b")], jobs=[*live, *batch])


def random_scenario(seed: int) -> Scenario:
    """Two to five models on a machine that holds some of them; some load slowly, or not at first, or can sleep."""
    chance = random.Random(seed)
    machine = chance.choice([_host_only, _one_device, _two_devices])()
    models = [_model(chance, name, machine) for name in "abcde"[: chance.randint(2, 5)]]
    names = [each.name for each in models]
    kinds = chance.sample([_storm, _trickle, _long, _flood, _burst], chance.randint(1, 3))
    jobs = [job for kind in kinds for job in kind(chance, names)]
    return Scenario(machine=machine, models=models, jobs=jobs)


def _host_only() -> Machine:
    return Machine(memories={HOST: 10 * GIB})


def _one_device() -> Machine:
    return Machine(memories={HOST: 40 * GIB, "0": 10 * GIB})


def _two_devices() -> Machine:
    return Machine(memories={HOST: 40 * GIB, "0": 10 * GIB, "1": 10 * GIB})


def _model(chance: random.Random, name: str, machine: Machine) -> Served:
    load_s = chance.choice([1.0, 3.0, 10.0, 30.0, 90.0])
    gib = chance.choice([2, 4, 6, 9])
    devices = chance.choice([1, 1, 1, len(machine.devices)]) if machine.devices else 0
    sleeps = bool(devices) and chance.random() < 0.3
    return served(
        name,
        gib=1 if devices else gib,
        device_bytes=gib * GIB if devices else 0,
        devices=devices,
        load_s=load_s,
        believed_s=load_s * chance.choice([0.3, 1.0, 1.0, 2.0]),
        most=chance.choice([1, 1, 2]),
        loading=chance.choice([Loading.ON_DEMAND, Loading.ON_DEMAND, Loading.AT_START]),
        keep_alive_s=chance.choice([0.0, 30.0, 600.0, math.inf]),
        places=chance.choice([1, 4, 16]),
        fails=chance.choice([0, 0, 0, 1, 2]),
        takes_asleep={HOST: (gib + 1) * GIB} if sleeps else None,
    )


def _priority(chance: random.Random) -> Priority:
    return chance.choice([INTERACTIVE, STANDARD, STANDARD])


def _storm(chance: random.Random, names: Sequence[str]) -> list[Job]:
    gap_s, work_s = chance.choice([0.05, 0.5, 3.0]), chance.choice([1.0, 5.0])
    return [Job(names[at % len(names)], at * gap_s, work_s, _priority(chance)) for at in range(80)]


def _trickle(chance: random.Random, names: Sequence[str]) -> list[Job]:
    jobs, now = [], 0.0
    for _ in range(60):
        now += chance.expovariate(1 / 8)
        expires_s = now + chance.uniform(5, 300) if chance.random() < 0.2 else math.inf
        jobs.append(Job(chance.choice(names), now, chance.uniform(0.5, 20), _priority(chance), expires_s))
    return jobs


def _long(chance: random.Random, names: Sequence[str]) -> list[Job]:
    return [Job(chance.choice(names), chance.uniform(0, 100), 1200.0, _priority(chance))]


def _flood(chance: random.Random, names: Sequence[str]) -> list[Job]:
    name, at = chance.choice(names), chance.uniform(0, 60)
    return [Job(name, at, chance.uniform(1, 30), BATCH) for _ in range(chance.randint(50, 150))]


def _burst(chance: random.Random, names: Sequence[str]) -> list[Job]:
    return [
        Job(name, at, chance.uniform(0.5, 5), _priority(chance))
        for at in (0.0, 100.0, 250.0)
        for name in names
        for _ in range(chance.randint(1, 10))
    ]


def small(seed: int, *, slot_s: float = 5.0, load_s: float = 10.0) -> Scenario:
    """Eight jobs of two or three models, of which one fits at a time, for bench/host_plan/optimum.py."""
    chance = random.Random(seed)
    names = "abc"[: chance.choice([2, 3])]
    spread = chance.choice([4, 15, 30])
    jobs = [
        Job(chance.choice(names), slot_s * chance.randint(0, spread), slot_s * chance.randint(1, 4)) for _ in range(8)
    ]
    return Scenario(machine=ROOM_FOR_ONE, models=[served(name, load_s=load_s) for name in names], jobs=jobs)
