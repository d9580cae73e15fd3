"""`make release` builds the last commit as sdist, wheel, chart, images, SBOM and checksums in dist/. docs/releasing.md
says how to use it. It needs only requirements/release.txt and runs apart from the project's environment."""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
SHIPPED = "torch,local,chat,otel"  # every extra that we ship, on a machine or in an image
PYTHON_IMAGE = "python:3.11-slim"
CPU_IMAGES = {"penstock-api": ("api", "cpu"), "penstock-worker": ("worker", "cpu")}
CUDA_IMAGES = {"penstock-worker-cuda": ("worker", "cuda"), "penstock-vllm": ("vllm", "cuda")}
NOT_LOCKED = {"penstock", "torch"}
CHART_CI = "ci"  # values for tests, which .helmignore excludes as well


class ReleaseError(Exception):
    """A release cannot be built; the message says why in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """`source` is a folder with the committed files alone. `epoch` is the time of every file in an archive, in seconds."""

    source: Path
    dist: Path
    version: str
    epoch: int


def main() -> int:
    options = parser().parse_args()
    os.umask(0o022)  # file modes are part of the archives
    os.environ.pop("PYTHONPATH", None)  # packages from there are not shipped
    try:
        with tempfile.TemporaryDirectory() as folder:
            release = committed(Path(folder) / "source")
            build_package(release)
            pack_chart(release)
            write_sbom(release, options.shipped)
            if engine_answers(options.images):
                build_images(release, options.python_image, CPU_IMAGES | (CUDA_IMAGES if options.cuda else {}))
            write_checksums(release.dist)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"make release: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--images", choices=["auto", "required", "none"], default="auto",
                      help="auto builds images if Docker answers, required fails without it, none skips them")  # fmt: skip
    made.add_argument("--cuda", action="store_true", help="also build the worker's image for NVIDIA GPUs")
    made.add_argument("--python-image", default=PYTHON_IMAGE, help="base image of the images, with a digest if known")
    made.add_argument("--shipped", type=Path, required=True, help="environment with torch, for the wheel")
    return made


def committed(source: Path) -> Release:
    """Export the last commit. Raises ReleaseError if there are uncommitted changes."""
    if changed := output("git", "status", "--porcelain"):
        raise ReleaseError(f"a release is built from a commit, but these files are not committed:\n{changed}")
    archive = source.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(source, filter="data")
    epoch = os.environ.setdefault("SOURCE_DATE_EPOCH", output("git", "log", "-1", "--format=%ct"))
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    return Release(source=source, dist=DIST, version=version_of(source), epoch=int(epoch))


def version_of(source: Path) -> str:
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def build_package(release: Release) -> None:
    """Build the sdist, and the wheel from the sdist: this shows that the sdist is complete."""
    run(sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", release.dist, release.source)
    sdist = release.dist / f"penstock-{release.version}.tar.gz"
    with tarfile.open(sdist) as files:
        members = [(info.name, content.read()) for info in files if (content := files.extractfile(info))]
    write_archive(sdist, members, epoch=release.epoch)  # setuptools writes the time of day into its own archive


def pack_chart(release: Release) -> Path:
    chart = release.source / "helm"
    paths = sorted(path for path in chart.rglob("*") if path.is_file() and path.parent != chart / CHART_CI)
    members = [(f"penstock/{path.relative_to(chart)}", path.read_bytes()) for path in paths]
    archive = release.dist / f"penstock-{release.version}.tgz"  # Helm's name for it
    write_archive(archive, members, epoch=release.epoch)
    return archive


def write_archive(path: Path, members: Iterable[tuple[str, bytes]], *, epoch: int) -> None:
    """Write a reproducible .tar.gz: the same files give the same bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), epoch, 0o644
            archive.addfile(info, io.BytesIO(content))


def write_sbom(release: Release, shipped: Path) -> None:
    """Write a CycloneDX SBOM of an environment with the wheel and its locked packages. Raises ReleaseError if the
    environment has a package that is not in the lock."""
    python = shipped / "bin" / "python"
    (wheel,) = release.dist.glob("*.whl")
    lock = release.source / "requirements" / "lock.txt"
    uv = [sys.executable, "-m", "uv", "pip"]
    run(*uv, "install", "-q", "--exact", "--reinstall-package", "penstock", "--python", python, "-c", lock,
        f"penstock[{SHIPPED}] @ {wheel.as_uri()}")  # fmt: skip
    for noted in shipped.glob("lib/*/site-packages/penstock-*.dist-info/direct_url.json"):
        noted.unlink()  # it names the wheel's path on this machine
    found = json.loads(output(*uv, "list", "--format", "json", "--python", str(python)))
    strange = not_locked({part["name"]: part["version"] for part in found}, lock.read_text(encoding="utf-8"))
    if strange:
        raise ReleaseError(
            f"the wheel needs packages that requirements/lock.txt lacks: {', '.join(strange)}; run `make lock`"
        )
    sbom = release.dist / f"penstock-{release.version}.cdx.json"
    run(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--mc-type", "application",
        "--pyproject", release.source / "pyproject.toml", "--output-format", "JSON", "-o", sbom, python)  # fmt: skip


def not_locked(installed: dict[str, str], lock: str) -> list[str]:
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.MULTILINE))
    return [
        f"{name}=={version}"
        for name, version in sorted(installed.items())
        if name not in NOT_LOCKED and pins.get(name) != version
    ]


def engine_answers(wanted: str) -> bool:
    """Return True if a Docker engine answers. Raises ReleaseError if images are required and none does."""
    if wanted == "none":
        return False
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0:
        return True
    if wanted == "required":
        raise ReleaseError("no Docker engine answers, so the images cannot be built")
    print("No Docker engine answers: the images are left out (IMAGES=required makes that an error).", flush=True)
    return False


def build_images(release: Release, python_image: str, images: dict[str, tuple[str, str]]) -> None:
    """Build the images in the engine, to be pushed, and save each as an archive for `docker load`."""
    if "@sha256:" not in python_image:
        print(
            f"{python_image} is a tag, which may move: docs/releasing.md says how to pin the images' base.", flush=True
        )
    identities = []
    for name, (target, torch) in images.items():
        tag = f"{name}:{release.version}"
        given = {"PYTHON_IMAGE": python_image, "TORCH": torch, "VERSION": release.version}
        given["SOURCE_DATE_EPOCH"] = str(release.epoch)
        arguments = [part for key, value in given.items() for part in ("--build-arg", f"{key}={value}")]
        run("docker", "build", "--target", target, "--tag", tag, *arguments, release.source)
        save_image(tag, release.dist / f"{name}-{release.version}.tar.gz", epoch=release.epoch)
        identities.append(f"{output('docker', 'image', 'inspect', '--format', '{{.Id}}', tag)}  {tag}\n")
    (release.dist / f"penstock-images-{release.version}.txt").write_text("".join(identities), encoding="utf-8")


def save_image(tag: str, path: Path, *, epoch: int) -> None:
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=epoch) as packed:
        command = ["docker", "save", tag]
        saving = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert saving.stdout is not None
        shutil.copyfileobj(saving.stdout, packed, 1 << 20)
        if saving.wait() != 0:
            raise ReleaseError(f"`docker save {tag}` failed")


def write_checksums(dist: Path) -> None:
    """Write the checksums for `sha256sum --check`."""
    lines = [f"{digest}  {name}\n" for name, digest in checksums(dist)]
    (dist / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    print("".join(lines), end="")


def checksums(dist: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(dist.iterdir()):
        with path.open("rb") as file:
            yield path.name, hashlib.file_digest(file, "sha256").hexdigest()


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
