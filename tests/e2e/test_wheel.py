"""The wheel, built from the sdist, serves without a checkout, in an environment of its own and in any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import BUILTIN
from tests.e2e.test_faults import ask
from tests.e2e.test_up import up

PACKAGES = ("api", "cli", "penstock", "shared", "workers")
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
COMPILED_S = 180.0  # a new environment has no compiled attention yet
# The environment leaves out the checkout, which may be on the path of the tests.
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the files here, committed or not; the build stays out of the checkout."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-c", SDIST, str(dist), cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    _run(*pip, "-w", str(dist), str(sdist), cwd=dist)
    (made,) = dist.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel and the packages of the tests' environment, so that none is downloaded.
    Return its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    _run(*pip, "--no-deps", "--no-index", str(wheel), cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named so is searched, but its own .pth files, of which one is the checkout's, are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin"


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=CLEAN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    here = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]

    with zipfile.ZipFile(wheel) as files:
        packed = {name for name in files.namelist() if ".dist-info/" not in name}

    assert packed == {str(path.relative_to(ROOT)) for path in here if "__pycache__" not in path.parts}


@pytest.mark.timeout(300)
def test_it_serves_outside_the_checkout_beside_folders_named_like_its_own(environment: Path, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')", encoding="utf-8")
    where = _run(str(environment / "python"), "-c", "import shared; print(shared.__file__)", cwd=environment)
    assert Path(where).is_relative_to(environment.parent)

    with (
        up(tmp_path, program=[str(environment / "penstock")], PYTHONPATH="", ready_s=COMPILED_S) as running,
        openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model=BUILTIN, messages=ask("Hello!"), max_tokens=8, stream=True)
        chunks = list(stream)
        jobs = _run(str(environment / "penstock"), "jobs", "list", cwd=tmp_path)
        about = httpx.get(f"http://127.0.0.1:{running.port}/openapi.json").json()["info"]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[0].id in jobs
    assert about["version"] == version("penstock")
