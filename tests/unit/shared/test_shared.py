"""The state table, the settings, Retry-After, and agreements between files."""

import ast
import re
import sys
import tomllib
import zlib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from rq.job import Job as RqJob
from rq.serializers import DefaultSerializer

from api.http.problems import STATUS, problem_of, problem_of_outcome
from shared import rq_view
from shared.domain import errors, lifecycle
from shared.domain.errors import SettingsError
from shared.domain.events import (
    REQUEST_FAULTS,
    Cancelled,
    Completed,
    Expired,
    Failed,
    Usage,
)
from shared.domain.lifecycle import TABLE, TERMINAL, IllegalMove, Move, State
from shared.queue.refusals import LIMITS, REFUSALS, retry_after_s
from shared.redis import keys
from shared.settings import load_settings
from tests.conftest import ROOT


def test_an_illegal_move_raises() -> None:
    for state in State:
        for move in Move:
            if (state, move) not in TABLE:
                with pytest.raises(IllegalMove):
                    lifecycle.after(state, move)


def test_only_failed_jobs_leave_a_terminal_state() -> None:
    assert {state for state, _ in TABLE if state in TERMINAL} == {State.FAILED}


def test_a_bad_setting_stops_the_start_and_names_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LEASE_MS", "soon")

    with pytest.raises(SettingsError, match="PENSTOCK_LEASE_MS"):
        load_settings()


def test_what_is_given_by_hand_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "9000")

    assert load_settings(port=9001, host=None).port == 9001


@pytest.mark.parametrize(("wait_s", "least", "most"), [(20, 20, 25), (0.01, 1, 1), (10_000, 120, 120), (0, 1, 1)])
def test_retry_after_is_the_wait_or_a_little_more(wait_s: float, least: int, most: int) -> None:
    found = {retry_after_s(wait_s) for _ in range(100)}

    assert least <= min(found) <= max(found) <= most
    assert (len(found) > 1) == (least < most)  # clients that are refused together return at different times


def test_every_error_has_a_status() -> None:
    made: list[errors.PenstockError] = [
        errors.SettingsError("x"),
        errors.InvalidRequest("x", param="p"),
        errors.ContextLengthExceeded("x"),
        errors.ConversationLocked("x", param="conversation"),
        errors.InputFlagged("x", param="input"),
        errors.ModerationUnavailable("x"),
        errors.NoVerdict("x"),
        errors.FileInUse("x", param="file_id"),
        errors.NotFound("x"),
        *[errors.QueueFull("x", reason=r, position=1, wait_s=2, retry_after_s=3) for r in (*REFUSALS, "redis_memory")],
        errors.StorageFull(used=1, bytes_max=2),
        errors.FilesFull(used=1, bytes_max=2, size=3),
        *[errors.LimitReached("x", limit=limit, retry_after_s=500) for limit in LIMITS],
        errors.Forbidden("x", param="model"),
        errors.IdempotencyKeyReused("x"),
        errors.QueueUnavailable("x"),
        errors.Stopping("x"),
        errors.DecodeError("x"),
        errors.EngineError("x"),
    ]
    assert {type(error) for error in made} == {
        kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.PenstockError
    }

    for error in made:
        assert problem_of(error).status in STATUS.values()
        if isinstance(error, errors.QueueFull):
            assert (
                problem_of(error).response({"path": "/v1/models", "headers": []}).headers["x-penstock-dropped-reason"]
                == error.reason
            )


def test_every_fault_of_a_request_is_the_clients_error() -> None:
    raised = {"invalid_request", *[kind.code for kind in errors.InvalidRequest.__subclasses__()]}

    assert raised <= REQUEST_FAULTS
    assert all(400 <= STATUS[code] < 500 for code in REQUEST_FAULTS)
    assert lifecycle.settling(Failed(code="engine_error", message="m")) is Move.FAIL
    assert lifecycle.settling(Failed(code="invalid_request", message="m")) is Move.CANCEL


def test_every_outcome_but_completed_is_a_problem() -> None:
    assert problem_of_outcome(Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))) is None
    for outcome, status in (
        (Failed(code="engine_error", message="m"), 500),
        (Failed(code="never heard of", message="m"), 500),
        (Cancelled(), 409),
        (Expired(), 408),
    ):
        problem = problem_of_outcome(outcome)
        assert problem
        assert problem.status == status


def test_rqs_data_field_names_the_stub_and_holds_nothing_else() -> None:
    """RQ's tools read it with the pickle serializer, their default."""
    call = DefaultSerializer.loads(zlib.decompress(rq_view.DATA))

    assert call == ("shared.rq_view.served_by_penstock_workers", None, (), {})
    assert RqJob  # the class that reads it
    with pytest.raises(RuntimeError, match="penstock worker"):
        rq_view.served_by_penstock_workers()


def test_every_key_of_the_lua_library_is_in_the_table() -> None:
    table = keys.__doc__ or ""
    prefixes = re.findall(r"'([^']+)'", "\n".join(keys.lua_names().values()))

    assert len(prefixes) >= 12
    for prefix in prefixes:
        assert f"| {prefix}" in table


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("shared", "api", "workers/engines/custom"), ()),
        (("workers",), ("torch",)),
        (("penstock",), ("testing",)),
    ],
)
def test_an_image_has_whatever_its_code_imports(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    """Only imports inside functions may be of optional packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *[each for name in extras for each in project["optional-dependencies"][name]]]
    named = {canonical(re.split(r"[\[<>=;! ]", each)[0]) for each in listed}
    # These are parts of others, or of CUDA's torch.
    allowed = named | {"starlette", "hiredis", "tokenizers", "numpy", "llvmlite", "triton"}
    providers = packages_distributions()
    for path in [path for folder in folders for path in modules_of(ROOT / folder)]:
        for name in imported(ast.parse(path.read_text())):
            if name not in sys.stdlib_module_names and name not in ("penstock", "shared", "api", "workers"):
                assert {canonical(each) for each in providers.get(name, [name])} & allowed, f"{path} imports {name}"


def modules_of(folder: Path) -> Iterator[Path]:
    """The modules below a folder, without those of engines that have an image or an extra of their own."""
    for path in folder.rglob("*.py"):
        if not {"llamacpp", "vllm"} & set(path.relative_to(folder).parts):
            yield path


def imported(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
