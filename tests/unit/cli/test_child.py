"""`penstock up` keeps a child process running."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import child
from cli.child import Child, pause_s
from shared.domain.errors import SettingsError


def running(code: str, log: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """Return a function that starts a Python with this code and appends to the log."""

    def launch() -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=out)

    return launch


def checked(watched: Child) -> list[str]:
    """Check the child until it gives up; return its reports and the final error."""
    said = list[str]()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if told := watched.check():
                said.append(told)
        except SettingsError as error:
            return [*said, str(error)]
    raise AssertionError(said)


def test_the_pause_before_it_is_started_again_grows() -> None:
    assert [pause_s(deaths) for deaths in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_one_that_dies_at_once_is_given_up_with_the_last_line_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PAUSE_MAX_S", 0.05)
    log = tmp_path / "log"
    watched = Child("it", running("import sys; sys.exit('no wheels')", log), log=log)
    watched.start()

    *said, last = checked(watched)

    assert said[0] == "it died (code 1) and was started again"
    assert said[1:] == [f"it died early (code 1), {n} times in a row; it starts again in 0.05 s" for n in (2, 3, 4)]
    assert last == f"it died at its start 5 times in a row (code 1); {log} ends with: no wheels"


def test_one_that_refuses_to_run_is_given_up_at_once_in_its_own_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import sys; print('penstock: PENSTOCK_PORT: port 1 is in use'); print('more'); sys.exit(2)"
    watched = Child("it", running(code, log), log=log)
    watched.start()

    assert checked(watched) == ["PENSTOCK_PORT: port 1 is in use"]


def test_its_log_is_bounded_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOG_BYTES_MAX", 10_000)
    log = tmp_path / "it.log"
    code = "import sys\nfor n in sys.stdin: print('x' * 99, flush=True)"
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=out)
    watched = Child("it", lambda: process, log=log)
    watched.start()
    assert process.stdin
    for _ in range(50):
        process.stdin.write(b"\n" * 10)
        process.stdin.flush()
        watched.bound_log()
    process.stdin.close()
    process.wait()

    watched.bound_log()

    kept = [log.stat().st_size, log.with_name("it.log.1").stat().st_size]
    assert kept[0] <= 10_000
    assert sum(kept) >= 10_000
    assert log.with_name("it.log.1").stat().st_mode & 0o077 == 0
    assert set(log.read_text().splitlines()) <= {"x" * 99}
    assert len(list(tmp_path.iterdir())) == 2
