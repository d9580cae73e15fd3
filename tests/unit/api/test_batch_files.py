"""The files of a batch: errors of lines, and the state after a process dies or is frozen."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.background.batch_files import ERRORS_MAX, LINES_MAX, PartialResults, check, lines
from api.stores.batches import Batch, Status, to_work_on

CHAT = "/v1/chat/completions"


def request(number: int, **more: Any) -> str:
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": {}} | more)


def written(folder: Path, *rows: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    return path


def codes(path: Path, *, line_bytes_max: int = 10_000) -> list[tuple[str, int | None]]:
    found = check(path, CHAT, line_bytes_max=line_bytes_max)
    return [(error["code"], error["line"]) for error in found.errors]


def test_a_line_over_the_bound_is_an_error_of_that_line(tmp_path: Path) -> None:
    path = written(tmp_path, request(0), request(1, body={"x": "y" * 10_000}), request(2, method="GET"))

    assert codes(path) == [("request_too_large", 2), ("invalid_method", 3)]


def test_a_line_of_exactly_the_bound_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, request(0), request(1))

    assert codes(path, line_bytes_max=len(request(0))) == []
    assert codes(path, line_bytes_max=len(request(0)) - 1) == [("request_too_large", 1), ("request_too_large", 2)]


def test_a_long_line_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as out:
        out.truncate(120_000_000)
        out.seek(120_000_000)
        out.write(b"\n" + request(1).encode())

    tracemalloc.start()
    found = codes(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == [("request_too_large", 1)]
    assert peak < 8_000_000


def test_a_file_is_read_no_further_than_it_must_be(tmp_path: Path) -> None:
    many = written(tmp_path, *[request(number) for number in range(LINES_MAX + 10)])
    assert codes(many) == [("too_many_requests", None)]

    wrong = written(tmp_path, *["{"] * 1000)
    assert len(codes(wrong)) == ERRORS_MAX


def test_lines_that_are_done_are_passed_over_and_keep_their_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, request(0), "", request(2), request(3), "broken")

    left = list(lines(path, CHAT, line_bytes_max=1000, done={2}))

    assert [(line.number, line.custom_id) for line in left] == [(0, "line-0"), (3, "line-3"), (4, None)]
    assert left[-1].wrong


PartsOf = Callable[[str], PartialResults]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[PartsOf]:
    """Return the partial results of one lease of the batch."""
    made: list[PartialResults] = []

    def of(tenure: str) -> PartialResults:
        made.append(PartialResults(tmp_path, "batch_1", tenure))
        return made[-1]

    yield of
    for each in made:
        each.close()


def result(found: PartialResults, folder: Path, *, good: bool = True) -> list[Any]:
    path = folder / "result"
    found.assemble(path, good=good)
    return [json.loads(row) for row in path.read_text().splitlines()]


def test_rows_come_out_in_the_order_of_their_lines_whoever_wrote_them(tmp_path: Path, parts: PartsOf) -> None:
    first = parts("a")
    first.add([(3, {"by": "a"}), (0, {"by": "a"})], good=True)
    second = parts("b")
    assert second.done[True] == {0, 3}
    second.add([(1, {"by": "b"})], good=True)

    assert result(second, tmp_path) == [{"by": "a"}, {"by": "b"}, {"by": "a"}]


def test_what_a_process_writes_after_it_lost_its_lease_changes_nothing(tmp_path: Path, parts: PartsOf) -> None:
    frozen = parts("a")
    frozen.add([(0, {"by": "a"})], good=True)
    owner = parts("b")

    frozen.add([(1, {"by": "a"})], good=True)
    frozen.add([(2, {"by": "a"})], good=False)
    owner.add([(1, {"by": "b"}), (2, {"by": "b"})], good=True)

    assert result(owner, tmp_path) == [{"by": "a"}, {"by": "b"}, {"by": "b"}]
    assert result(owner, tmp_path, good=False) == []


def test_a_line_with_an_answer_is_in_no_error_file(tmp_path: Path, parts: PartsOf) -> None:
    found = parts("a")
    found.add([(0, {"bad": 1})], good=False)
    found.add([(0, {"good": 1})], good=True)

    assert result(found, tmp_path) == [{"good": 1}]
    assert result(found, tmp_path, good=False) == []


def test_half_a_row_of_a_dead_process_is_left_out(tmp_path: Path, parts: PartsOf) -> None:
    (tmp_path / "batch_1.a.output").write_bytes(b'0\t{"n":0}\n1\t{"n":')
    (tmp_path / "batch_1.output").write_bytes(b'2\t{"n":2}\n')  # the name in release 0.2

    found = parts("b")
    found.add([(1, {"n": 1})], good=True)

    assert result(found, tmp_path) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_an_ended_batch_leaves_its_results_only(tmp_path: Path, parts: PartsOf) -> None:
    old, found = parts("a"), parts("b")
    old.add([(0, {})], good=True)
    found.add([(1, {})], good=False)
    (tmp_path / "file-batch_1-a-output").touch()
    kept, other = tmp_path / "file-batch_1-b-output", tmp_path / "file-x"
    kept.touch()
    other.touch()

    found.remove(keep=[kept])
    found.add([(2, {})], good=True)

    assert set(tmp_path.iterdir()) == {kept, other}


def batch(number: int, tenant: str, *, window_s: int = 1000) -> Batch:
    return Batch(
        id=f"batch_{number}",
        tenant=tenant,
        key="",
        endpoint=CHAT,
        input_file_id="file-1",
        window_s=window_s,
        status=Status.VALIDATING,
        at={Status.VALIDATING: number},
    )


@pytest.mark.parametrize(
    ("cancelled", "now_s", "expected"),
    [
        (set(), 10, [1, 2, 4]),
        ({"batch_1"}, 10, [1, 2, 3, 4]),
        ({"batch_3"}, 10, [3, 1, 2, 4]),
        (set(), 55, [5, 1, 2, 4]),
    ],
)
def test_the_oldest_of_each_tenant_are_worked_on_and_what_is_to_end_waits_for_nobody(
    cancelled: set[str], now_s: int, expected: list[int]
) -> None:
    found = [batch(3, "a"), batch(1, "a"), batch(2, "a"), batch(4, "b"), batch(5, "a", window_s=45)]

    wanted = to_work_on(found, at_once=2, now_s=now_s, cancelled=cancelled)

    assert wanted == [f"batch_{number}" for number in expected]
