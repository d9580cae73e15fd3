"""A host adopts the workers that an earlier one wrote down, also one of a neighbouring release."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from workers.host.fleet import Fleet
from workers.host.remembered import Memory, Remembered
from workers.host.worker_process import WorkerRecord, adopted

RECORD = WorkerRecord(
    id="m-1",
    model="m",
    names=("m",),
    spec="1",
    devices=(),
    takes={"host": 1},
    turn_s=0,
    launched_s=1,
    pid=1,
    created_s=1,
)


def test_a_worker_of_a_later_release_is_adopted_by_what_is_known_of_it(tmp_path: Path) -> None:
    (tmp_path / "m-1.json").write_text(json.dumps({**asdict(RECORD), "later": True}))

    assert [each.record for each in adopted(tmp_path)] == [RECORD]


def test_the_memory_of_a_worker_that_has_left_is_given_to_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "m-1.json").write_text(json.dumps(asdict(replace(RECORD, pid=os.getpid(), stopping=True))))
    fleet = Fleet(tmp_path, Memory(tmp_path / "learnt.json"), {})
    assert [each.id for each in fleet.planned()] == ["m-1"]

    (tmp_path / "m-1.left").touch()

    assert fleet.planned() == []
    assert [each.record.id for each in fleet] == ["m-1"]  # until its process ends


def test_what_a_later_release_remembered_is_kept_but_for_what_this_one_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    path.write_text(json.dumps({"m": {"spec": "1", "load_s": 4, "later": True}}))

    assert Memory.read(path).of("m", "1") == Remembered(spec="1", load_s=4)
