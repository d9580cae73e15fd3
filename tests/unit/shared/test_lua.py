"""The Lua inside Redis: its headers list its uses, no name is undefined, and arguments go by name."""

import ast
import inspect
import re
import textwrap
from graphlib import CycleError
from pathlib import Path
from typing import Any

import pytest

from bench.chaos.mutants import MUTANTS, ROOT, Mutant, planted
from shared import rq_view
from shared.queue import lua, redis_queue
from shared.redis import keys
from tests.lua_source import all_parts, defined, free, given, indexed, job_fields, redis_calls
from tools.check_sizes import functions

PARTS = all_parts()
SHARED = [part for part in PARTS if part.kind == "part"]
VERBS = [part for part in PARTS if part.kind == "verb"]
GLOBALS = set(
    "ARGV ipairs math next pairs redis string table tonumber tostring unpack".split()
)  # every Redis has these
LIBRARIES = ("redis", "string", "math", "table")
WRITES, READS = {"HSET", "HINCRBY"}, {"HGET", "HMGET", "HSTRLEN"}
ECHO = """
-- part: upper
local function upper(text) return string.upper(text) end
-- verb: echo
-- takes: text, number count, list rest
-- takes: list rows (id, number at, list words)
-- needs: upper
local function echo(args) return upper(args.text) end
"""


def fields_in_lua(commands: set[str]) -> dict[str, set[str]]:
    """Map the fields of a job's hash that these commands name to the files that name them."""
    found: dict[str, set[str]] = {}
    for part in PARTS:
        for call in redis_calls(part.text):
            if call.command in commands and re.match(r"(job$|JOB \.\. )", call.arguments[0]):
                step = 2 if call.command == "HSET" else 1
                last = 2 if call.command in ("HINCRBY", "HSTRLEN") else None
                for at in range(1, len(call.arguments[:last]), step):
                    if call.literal[at]:
                        found.setdefault(call.arguments[at], set()).add(part.file)
    return found


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_needs_exactly_the_parts_whose_names_it_uses(part: lua.Part) -> None:
    owners = {name: each.name for each in SHARED for name in defined(each.text)}

    used = free(part.text) - GLOBALS - lua.given().keys()

    assert used <= owners.keys()
    assert {owners[name] for name in used} == set(part.needs)


def test_no_name_is_defined_by_two_parts() -> None:
    names = [name for part in SHARED for name in defined(part.text)]

    assert len(names) == len(set(names))
    assert len({(part.kind, part.name) for part in PARTS}) == len(PARTS)


@pytest.mark.parametrize("part", VERBS, ids=lambda part: part.name)
def test_a_verb_reaches_nothing_that_is_undefined(part: lua.Part) -> None:
    assert free(lua.verbs()[part.name].script) <= GLOBALS


@pytest.mark.parametrize("part", VERBS, ids=lambda part: part.name)
def test_a_verb_takes_exactly_the_arguments_that_it_reads(part: lua.Part) -> None:
    columns = {column for _, rows in part.takes.lists if rows for column in rows.names}
    script = lua.verbs()[part.name].script

    assert indexed(script, "args") == part.takes.names
    assert columns <= indexed(script)


def test_every_field_of_a_table_that_is_read_is_given_to_one() -> None:
    known = {name for part in PARTS for name in given(part.text)} | job_fields().keys()
    for takes in [part.takes for part in PARTS]:
        known |= takes.names.union(*[columns.names for _, columns in takes.lists if columns])

    for part in PARTS:
        of_libraries = {name for library in LIBRARIES for name in indexed(part.text, library)}
        assert indexed(part.text) - of_libraries <= known, part.name


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.file.endswith(".lua")], ids=lambda each: each.name)
def test_a_bug_that_is_planted_in_lua_still_links(mutant: Mutant, tmp_path: Path) -> None:
    """A bug that does not link would be found for the wrong reason."""
    code = planted(mutant, tmp_path)
    paths = [code / path.relative_to(ROOT) for path in lua.files()]

    verbs = lua.linked(part for path in paths for part in lua.parts(path.name, path.read_text(encoding="utf-8")))

    assert verbs.keys() == lua.verbs().keys()
    assert all(free(verb.script) <= GLOBALS for verb in verbs.values())
    assert any(verb.script != lua.verbs()[name].script for name, verb in verbs.items())


def test_a_verb_carries_no_part_that_it_does_not_need() -> None:
    append = lua.verbs()["append"].script

    assert "local function append_events" in append
    assert "local function cost_of" not in append
    assert "LEASES" not in append


def test_arguments_are_put_in_the_order_of_the_header() -> None:
    echo = lua.linked(lua.parts("echo.lua", ECHO))["echo"]

    flat = echo.arguments({"rest": [], "rows": [{"words": ["x", "y"], "at": 5, "id": "a"}], "count": 2, "text": "t"})

    assert flat == ["echo", "t", 2, 0, 1, "a", 5, 2, "x", "y"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"count": None}, "missing arguments ['count'], unknown arguments []"),
        ({"cuont": 1}, "missing arguments [], unknown arguments ['cuont']"),
        (
            {"rows": [{"id": 1, "at": 1, "word": []}]},
            "rows: missing arguments ['words'], unknown arguments ['word']",
        ),
    ],
)
def test_an_argument_that_is_missing_or_unknown_is_named(change: dict[str, Any], named: str) -> None:
    echo = lua.linked(lua.parts("echo.lua", ECHO))["echo"]
    arguments = {"text": "t", "count": 1, "rows": [], "rest": []} | change
    given_ones = {name: value for name, value in arguments.items() if value is not None}

    with pytest.raises(TypeError, match=re.escape(named)):
        echo.arguments(given_ones)


@pytest.mark.parametrize("takes", ["list a, b", "list a (b), list c", "list a (b), list c (d)"])
def test_rows_come_last_since_they_are_read_one_by_one(takes: str) -> None:
    with pytest.raises(ValueError, match=re.escape(takes)):
        list(lua.parts("echo.lua", f"-- verb: echo\n-- takes: {takes}\n"))


def test_a_part_that_is_missing_or_needs_itself_is_named() -> None:
    with pytest.raises(KeyError, match="uppre"):
        lua.linked(lua.parts("echo.lua", ECHO.replace("needs: upper", "needs: uppre")))
    with pytest.raises(CycleError, match="upper"):
        lua.linked(lua.parts("echo.lua", ECHO.replace("part: upper", "part: upper\n-- needs: upper")))


def test_a_file_that_the_key_table_names_uses_the_key() -> None:
    table = (keys.__doc__ or "").partition("The fields of rq:job")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    writers = {row[0]: re.findall(r"\w+\.lua", row[2]) for row in rows}
    uses = {path.name: path.read_text(encoding="utf-8") for path in lua.files()}
    names = {name: re.findall(r"'([^']+)'", definition)[0] for name, definition in keys.lua_names().items()}

    assert sum(map(len, writers.values())) > 20
    for key, files in writers.items():
        name = next((name for name, prefix in names.items() if key == prefix or key.startswith(prefix + "{")), "")
        for file in files:
            assert not name or re.search(rf"\b{name}\b", uses[file]), (key, file)


def test_lua_writes_and_reads_exactly_the_fields_of_a_job_that_the_table_says() -> None:
    table, written, read = job_fields(), fields_in_lua(WRITES), fields_in_lua(READS)

    assert written.keys() | read.keys() <= table.keys()
    for name, (writers, readers, _) in table.items():
        assert {each for each in writers if each.endswith(".lua")} == written.get(name, set()), name
        assert {each for each in readers if each.endswith(".lua")} == read.get(name, set()), name


def test_a_field_that_lua_removes_does_not_go_with_the_hash() -> None:
    removed = fields_in_lua({"HDEL"})

    assert {name for name, (_, _, goes) in job_fields().items() if goes != "the hash"} == removed.keys()


def test_every_field_that_python_writes_is_in_the_table() -> None:
    queue = redis_queue.RedisQueue
    writers: list[Any] = [queue.fields, queue.enqueue, queue.replay, redis_queue._limits, rq_view.job_fields]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(each))) for each in writers]
    found = {
        key.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }

    assert found == {name for name, (by, _, _) in job_fields().items() if "enqueue" in by}


def test_the_sizes_of_lua_functions_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "long.lua"
    path.write_text(
        "local function short(x) return x end\nlocal function long(args)\n" + "  if x then\n  end\n" * 40 + "end\n"
    )

    assert [size for _, size in functions(path)] == [1, 82]
