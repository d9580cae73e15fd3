"""A host adopts the workers that an earlier one wrote down, also one of a neighbouring release."""

import json
from dataclasses import asdict
from pathlib import Path

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
