"""Compiled kernels are kept where they can be written, apart for each version of their sources."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from tests.conftest import ROOT
from workers.engines.native.kernels import compile_cache
from workers.engines.native.kernels.compile_cache import HERE, _fingerprint, keep_compiled

PROGRAM = """
import numba
from workers.engines.native.kernels.compile_cache import keep_compiled

def double(number):
    return 2 * number

cached = keep_compiled()
for _ in range(2):
    print(numba.cfunc("int64(int64)", cache=cached)(double).cache_hits)
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", numba.config.CACHE_DIR)


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """Return a folder that nobody can make, root included."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


def test_the_folder_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))

    assert keep_compiled()

    (folder,) = (tmp_path / "kernels").iterdir()
    assert folder == Path(numba.config.CACHE_DIR)


def test_a_kernel_that_was_compiled_is_read_from_the_folder(tmp_path: Path) -> None:
    """numba reads its environment when it is imported, so this needs a process of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels"), "PYTHONPATH": str(ROOT)}

    printed = subprocess.check_output([sys.executable, tmp_path / "program.py"], env=environment, text=True)

    assert printed.split() == ["0", "1"]


def test_a_volume_that_cannot_be_written_is_passed_over(monkeypatch: pytest.MonkeyPatch, read_only: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(read_only))

    assert keep_compiled()

    assert Path(numba.config.CACHE_DIR).is_relative_to(HERE)


def test_nothing_is_kept_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, read_only: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(compile_cache, "HERE", read_only)

    assert not keep_compiled()


def test_what_other_sources_were_compiled_to_is_not_used(tmp_path: Path) -> None:
    """numba would use it when only a helper in another file has changed."""
    for name in ("kernel.py", "helper.py"):
        (tmp_path / name).write_text("before")
    before = _fingerprint(tmp_path)
    (tmp_path / "helper.py").write_text("after")

    assert _fingerprint(tmp_path) != before


def test_the_image_keeps_compiled_kernels_in_its_volume() -> None:
    stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition("AS worker\n")[2].partition("\nFROM ")[0]
    (volume,) = [line.removeprefix("VOLUME ") for line in stage.splitlines() if line.startswith("VOLUME")]

    assert f"NUMBA_CACHE_DIR={volume}/" in stage
