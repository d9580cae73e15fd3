"""The plan of a host, rule by rule."""

from dataclasses import replace

from shared.domain.hosting import When
from shared.domain.job import Priority
from workers.host.actions import Action, Load, Refuse, Sleep, Unload, Wake
from workers.host.machine import HOST, Loading, Machine, PlannedModel, PlannedWorker, Waiting, WorkerState
from workers.host.plan import plan
from workers.host.turns import Rules

GIB = 2**30
NOW = 10_000.0
RULES = Rules()
ONE = Machine(memories={HOST: 10 * GIB})
TWO_DEVICES = Machine(memories={HOST: 100 * GIB, "0": 10 * GIB, "1": 10 * GIB})


def model(name: str, **fields: object) -> PlannedModel:
    usual = PlannedModel(name=name, host_bytes=6 * GIB, idle_since_s=NOW - 1000, keep_alive_s=1e9)
    return replace(usual, **fields)  # type: ignore[arg-type]


def asked(jobs: int = 1, oldest_s: float = 0.0, priority: Priority = Priority.STANDARD) -> dict[Priority, Waiting]:
    return {priority: Waiting(jobs=jobs, tokens=100 * jobs, oldest_s=oldest_s)}


def batch(oldest_s: float = 1000.0) -> dict[Priority, Waiting]:
    return asked(100, oldest_s, Priority.BATCH)


def ready(name: str, since_s: float = 1000.0, **fields: object) -> PlannedWorker:
    takes = {HOST: 6 * GIB}
    usual = PlannedWorker(id=f"{name}-1", model=name, state=WorkerState.READY, since_s=NOW - since_s, takes=takes)
    return replace(usual, **fields)  # type: ignore[arg-type]


def actions(
    models: list[PlannedModel], workers: list[PlannedWorker] | None = None, machine: Machine = ONE
) -> list[Action]:
    return list(plan(machine, models, workers or [], NOW, RULES).actions)


def loaded(found: list[Action]) -> list[str]:
    return [each.model for each in found if isinstance(each, Load)]


def unloaded(found: list[Action]) -> dict[str, When]:
    return {each.worker: each.when for each in found if isinstance(each, Unload)}


def test_a_model_that_is_waited_for_is_loaded_where_there_is_room() -> None:
    found = actions([model("a", waiting=asked()), model("b")])

    assert loaded(found) == ["a"]


def test_nothing_is_done_while_nothing_is_asked() -> None:
    planned = plan(ONE, [model("a"), model("b", keep_alive_s=1060)], [ready("b")], NOW, RULES)

    assert planned.actions == ()
    assert planned.again_s == 60  # when the keep-alive of b ends


def test_an_idle_model_goes_at_once_for_one_that_is_waited_for() -> None:
    models = [model("a"), model("b", waiting=asked())]

    assert unloaded(actions(models, [ready("a")])) == {"a-1": When.NOW}
    assert loaded(actions(models, [ready("a", state=WorkerState.STOPPING)])) == []  # its memory is not free yet
    assert loaded(actions(models, [])) == ["b"]


def test_a_loaded_model_keeps_its_place_for_its_turn_while_it_has_work() -> None:
    models = [model("a", running={Priority.STANDARD: 1}), model("b", waiting=asked(oldest_s=500))]

    assert actions(models, [ready("a", since_s=39)]) == []
    assert unloaded(actions(models, [ready("a", since_s=41)])) == {"a-1": When.NOW}


def test_somebody_who_has_just_come_waits_as_long_as_a_turn() -> None:
    running = model("a", running={Priority.STANDARD: 1})

    assert actions([running, model("b", waiting=asked(oldest_s=39))], [ready("a")]) == []
    assert unloaded(actions([running, model("b", waiting=asked(oldest_s=41))], [ready("a")])) == {"a-1": When.NOW}


def test_a_batch_interrupts_nobody_who_waits_for_an_answer() -> None:
    models = [model("a", running={Priority.STANDARD: 1}), model("b", waiting=batch())]

    assert actions(models, [ready("a")]) == []


def test_a_batch_that_has_waited_for_very_long_gets_a_turn_once_the_running_answers_are_done() -> None:
    models = [model("a", running={Priority.INTERACTIVE: 1}), model("b", waiting=batch(3601))]
    between = replace(models[0], running={}, waiting=asked(oldest_s=1))

    assert actions(models, [ready("a")]) == []
    assert unloaded(actions([between, models[1]], [ready("a")])) == {"a-1": When.NOW}
    longer = model("b", waiting=batch(3600 + RULES.turn_max_s))
    assert unloaded(actions([models[0], longer], [ready("a")])) == {"a-1": When.NOW}
    (load,) = actions([replace(models[0], running={}), models[1]], [])
    assert isinstance(load, Load)
    assert load.turn_s == RULES.turn_max_s
    waiting = [
        replace(models[0], running={}, waiting=asked(oldest_s=55)),
        replace(models[1], running={Priority.BATCH: 1}),
    ]
    assert actions(waiting, [ready("b", since_s=59, turn_s=60)]) == []
    assert unloaded(actions(waiting, [ready("b", since_s=61, turn_s=60)])) == {"b-1": When.NOW}


def test_a_batch_gives_its_place_up_at_once_for_somebody_who_waits() -> None:
    models = [model("a", running={Priority.BATCH: 3}, waiting=batch()), model("b", waiting=asked())]

    assert unloaded(actions(models, [ready("a", since_s=1)])) == {"a-1": When.NOW}


def test_a_batch_waits_until_a_pause_has_lasted_as_long_as_the_loads_would() -> None:
    short, long = model("a", idle_since_s=NOW - 19), model("a", idle_since_s=NOW - 21)

    assert actions([short, model("b", waiting=batch())], [ready("a")]) == []
    assert unloaded(actions([long, model("b", waiting=batch())], [ready("a")])) == {"a-1": When.NOW}


def test_a_model_that_usually_comes_back_soon_is_kept_through_its_pause() -> None:
    waiting = model("b", waiting=asked(oldest_s=5))

    assert actions([model("a", idle_since_s=NOW - 1, gap_s=3), waiting], [ready("a")]) == []
    assert unloaded(actions([model("a", idle_since_s=NOW - 21, gap_s=3), waiting], [ready("a")])) == {"a-1": When.NOW}
    assert unloaded(actions([model("a", idle_since_s=NOW - 1, gap_s=30), waiting], [ready("a")])) == {"a-1": When.NOW}


def test_who_has_waited_too_long_comes_first_and_then_who_waits_for_most() -> None:
    late = model("late", waiting=asked(1, 61))
    big, small = model("big", waiting=asked(1000, 50)), model("small", waiting=asked(2, 50))

    assert loaded(actions([small, big, late])) == ["late"]
    assert loaded(actions([small, big])) == ["big"]
    assert loaded(actions([small, replace(big, load_s=1e6)])) == ["small"]
    assert loaded(
        actions([replace(small, waiting=asked(2, 50, Priority.INTERACTIVE)), replace(small, name="other")])
    ) == ["small"]


def test_a_model_that_was_displaced_does_not_come_first_again() -> None:
    displaced = model("a", waiting=asked(10_000, 500, Priority.INTERACTIVE), absent_since_s=NOW - 1)
    models = [displaced, model("b", waiting=asked(oldest_s=41))]

    assert loaded(actions(models)) == ["b"]
    assert loaded(actions([displaced, model("b", waiting=asked(oldest_s=1))])) == ["a"]


def test_the_more_urgent_class_comes_first_among_those_that_have_waited_long() -> None:
    models = [
        model("a", waiting=asked(oldest_s=50)),
        model("b", waiting=asked(oldest_s=25, priority=Priority.INTERACTIVE)),
    ]

    assert loaded(actions(models)) == ["b"]


def test_a_batch_takes_no_memory_that_somebody_waits_for() -> None:
    large = model("large", host_bytes=9 * GIB, waiting=asked(oldest_s=1))
    small = model("small", host_bytes=2 * GIB, waiting=batch())
    busy = ready("a", since_s=1, takes={HOST: 4 * GIB})
    models = [model("a", host_bytes=4 * GIB, running={Priority.STANDARD: 1}), large, small]

    assert actions(models, [busy]) == []
    assert loaded(actions([models[0], replace(large, waiting={}), small], [busy])) == ["small"]


def test_pinned_kept_and_loading_models_are_displaced_for_nobody() -> None:
    waiting = model("b", waiting=asked(oldest_s=1000))

    assert actions([model("a", kept_until_s=NOW + 1), waiting], [ready("a")]) == []
    assert actions([model("a"), waiting], [ready("a", state=WorkerState.LOADING)]) == []
    (refused,) = actions([model("a", pinned=True), waiting], [ready("a")])
    assert refused == Refuse(model="b", why="it needs 6.0 GiB of main memory, and pinned models leave 4.0")


def test_a_manual_model_is_loaded_by_an_order_alone_and_is_left_its_work() -> None:
    manual = model("a", loading=Loading.MANUAL, waiting=asked())
    other = model("b", waiting=asked(oldest_s=1000))

    assert actions([manual]) == []
    assert loaded(actions([replace(manual, ordered=True)])) == ["a"]
    assert actions([manual, other], [ready("a")]) == []
    assert unloaded(actions([replace(manual, waiting={}), other], [ready("a")])) == {"a-1": When.NOW}


def test_an_order_displaces_whoever_is_not_pinned_at_once() -> None:
    models = [model("a", running={Priority.INTERACTIVE: 1}), model("b", ordered=True)]

    assert unloaded(actions(models, [ready("a", since_s=0)])) == {"a-1": When.NOW}


def test_a_model_goes_when_its_keep_alive_is_over() -> None:
    idle = model("a", keep_alive_s=999)

    assert unloaded(actions([idle], [ready("a")])) == {"a-1": When.IDLE}
    for stays in (
        replace(idle, keep_alive_s=1001),
        replace(idle, pinned=True),
        replace(idle, kept_until_s=NOW + 1),
        replace(idle, loading=Loading.AT_START),
        replace(idle, running={Priority.BATCH: 1}),
    ):
        assert actions([stays], [ready("a")]) == []


def test_a_model_of_the_start_comes_back_when_there_is_room() -> None:
    resident = model("a", loading=Loading.AT_START)

    assert loaded(actions([resident, model("b")], [])) == ["a"]
    assert actions([resident, model("b")], [ready("b")]) == []


def test_a_model_whose_load_failed_is_not_loaded_before_its_pause_is_over() -> None:
    failed = model("a", waiting=asked(), not_before_s=NOW + 1)

    assert actions([failed]) == []
    assert loaded(actions([replace(failed, not_before_s=NOW)])) == ["a"]


def test_a_model_that_nobody_can_measure_gets_everything_that_is_not_pinned() -> None:
    unknown = model("b", host_bytes=None, waiting=asked())
    pinned = ready("a", takes={HOST: 3 * GIB})

    assert unloaded(actions([model("a"), unknown], [pinned])) == {"a-1": When.NOW}
    (load,) = actions([model("a", pinned=True), unknown], [pinned])
    assert isinstance(load, Load)
    assert load.takes == {HOST: 7 * GIB}


def test_a_model_larger_than_the_machine_is_refused() -> None:
    large = model("a", waiting=asked(), host_bytes=11 * GIB)

    assert actions([large]) == [Refuse(model="a", why="it needs 11.0 GiB of main memory, and pinned models leave 10.0")]
    (refused,) = actions([model("a", waiting=asked(), devices=3)], machine=TWO_DEVICES)
    assert refused == Refuse(model="a", why="it needs 3 devices, and there are 2")


def on_device(name: str, device: str, gib: int = 6, **fields: object) -> PlannedWorker:
    return replace(ready(name), takes={HOST: GIB, device: gib * GIB}, **fields)  # type: ignore[arg-type]


def gpu(name: str, gib: int = 6, **fields: object) -> PlannedModel:
    return replace(model(name, devices=1, host_bytes=GIB, device_bytes=gib * GIB), **fields)  # type: ignore[arg-type]


def test_a_model_gets_the_fullest_device_on_which_it_fits() -> None:
    (load,) = actions([gpu("a"), gpu("b", 4, waiting=asked())], [on_device("a", "1")], TWO_DEVICES)

    assert isinstance(load, Load)
    assert (load.devices, load.takes) == (("1",), {HOST: GIB, "1": 4 * GIB})


def test_the_least_recently_used_idle_model_makes_room() -> None:
    models = [gpu("a"), gpu("b", idle_since_s=NOW - 2000), gpu("c", waiting=asked())]

    found = actions(models, [on_device("a", "0"), on_device("b", "1")], TWO_DEVICES)

    assert unloaded(found) == {"b-1": When.NOW}


def test_a_model_of_two_devices_waits_for_both_and_nobody_takes_one_of_them_meanwhile() -> None:
    large = gpu("large", devices=2, waiting=asked(oldest_s=100))
    models = [gpu("a", running={Priority.STANDARD: 1}), large, gpu("small", 5, waiting=asked())]

    assert actions(models, [on_device("a", "0", since_s=NOW - 5)], TWO_DEVICES) == []
    found = actions(models, [on_device("a", "0")], TWO_DEVICES)
    assert unloaded(found) == {"a-1": When.NOW}
    assert loaded(found) == []


def test_more_workers_are_loaded_in_free_memory_and_go_when_they_are_not_wanted() -> None:
    busy = gpu("a", waiting=asked(100), workers_wanted=3, most=2)
    first, second = on_device("a", "0"), replace(on_device("a", "1"), id="a-2")

    (load,) = actions([busy], [first], TWO_DEVICES)
    assert isinstance(load, Load)
    assert load.devices == ("1",)
    assert actions([busy], [first, second], TWO_DEVICES) == []
    enough = replace(busy, workers_wanted=1)
    assert list(unloaded(actions([enough], [first, second], TWO_DEVICES)).values()) == [When.IDLE]


def test_a_second_worker_makes_room_for_the_first_of_another_model() -> None:
    models = [gpu("a", waiting=asked(100), workers_wanted=2, most=2), gpu("b", waiting=asked())]

    found = actions(
        models,
        [on_device("a", "0", since_s=NOW - 1), replace(on_device("a", "1", since_s=NOW - 1), id="a-2")],
        TWO_DEVICES,
    )

    assert unloaded(found) == {"a-2": When.NOW}


def test_a_model_that_can_sleep_is_put_to_sleep_and_woken() -> None:
    asleep_takes = {HOST: 7 * GIB, "0": GIB}
    machine = Machine(memories={HOST: 100 * GIB, "0": 10 * GIB})
    worker = on_device("a", "0", takes_asleep=asleep_takes)

    (sleep,) = actions([gpu("a"), gpu("b", waiting=asked())], [worker], machine)
    assert sleep == Sleep(worker="a-1", when=When.NOW, why="b needs the memory: 1 jobs wait for it")
    asleep = replace(worker, state=WorkerState.ASLEEP)
    (load,) = actions([gpu("a"), gpu("b", waiting=asked())], [asleep], machine)
    assert isinstance(load, Load)
    (wake,) = actions([gpu("a", waiting=asked()), gpu("b")], [asleep], machine)
    assert isinstance(wake, Wake)
    assert wake.worker == "a-1"


def test_a_model_is_unloaded_where_what_it_keeps_asleep_leaves_no_room_for_the_other() -> None:
    """Of the other one nothing is known, so it gets the whole device."""
    machine = Machine(memories={HOST: 100 * GIB, "0": 10 * GIB})
    worker = on_device("a", "0", takes_asleep={HOST: 7 * GIB, "0": GIB})

    (unload,) = actions([gpu("a"), replace(gpu("b", waiting=asked()), device_bytes=None)], [worker], machine)

    assert isinstance(unload, Unload)


def test_a_model_is_unloaded_rather_than_put_to_sleep_where_the_main_memory_is_full() -> None:
    machine = Machine(memories={HOST: 4 * GIB, "0": 10 * GIB})
    worker = on_device("a", "0", takes_asleep={HOST: 7 * GIB, "0": GIB})

    assert unloaded(actions([gpu("a"), gpu("b", waiting=asked())], [worker], machine)) == {"a-1": When.NOW}


def test_no_more_than_the_bound_load_at_a_time() -> None:
    models = [model(name, host_bytes=GIB, waiting=asked()) for name in "abc"]

    assert len(loaded(actions(models))) == RULES.loads_max


def test_a_worker_whose_model_left_the_file_ends_after_its_running_jobs() -> None:
    assert unloaded(actions([], [ready("a")])) == {"a-1": When.RUNNING}


def test_a_job_that_would_expire_shortens_the_turn_of_the_loaded_model() -> None:
    models = [model("a", running={Priority.STANDARD: 1}), model("b", waiting=asked(oldest_s=1), expires_s=15)]

    assert actions(models, [ready("a", since_s=9)]) == []
    assert unloaded(actions(models, [ready("a", since_s=11)])) == {"a-1": When.NOW}
