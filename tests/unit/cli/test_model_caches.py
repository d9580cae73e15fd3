"""Files of models are copied whole or not at all, and removed only where a hub's library keeps them."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli import model_caches
from cli.model_caches import cached, copy, require_hub_id, used_by_process
from shared.domain.errors import InvalidRequest, NotFound


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").mkdir()
    (folder / "weights" / "a.safetensors").write_bytes(bytes(1000))
    return folder


def test_a_folder_is_copied_with_its_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    copied = copy(model(tmp_path / "from"), tmp_path / "to", progress=lambda done, total: told.append((done, total)))

    assert (copied / "weights" / "a.safetensors").stat().st_size == 1000
    assert told[-1] == (1002, 1002)


def test_what_is_there_already_or_no_model_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(InvalidRequest, match="exists already"):
        copy(model(tmp_path / "from"), tmp_path / "empty", progress=lambda *_: None)
    with pytest.raises(InvalidRequest, match="holds no model"):
        copy(tmp_path / "empty", tmp_path / "to", progress=lambda *_: None)


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def full(done: int, total: int) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        copy(model(tmp_path / "from"), tmp_path / "to", progress=full)

    assert [path.name for path in tmp_path.iterdir()] == ["from"]


@pytest.mark.parametrize("source", ["/etc", "../../etc/passwd", "~/x", "a", "a/../b", "a/b/c", "", "./a"])
def test_only_the_id_of_a_model_on_a_hub_is_taken(source: str) -> None:
    with pytest.raises(InvalidRequest, match="is not the id of a model"):
        require_hub_id(source)


def test_a_model_is_found_in_its_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_caches, "_hugging_face_cache", lambda: tmp_path)
    model(tmp_path / "models--org--name")

    assert cached("org/name", "huggingface") == (tmp_path / "models--org--name", 1002)
    with pytest.raises(NotFound, match="org/other was not fetched"):
        cached("org/other", "huggingface")


def test_a_process_that_has_a_file_in_its_memory_is_found(tmp_path: Path) -> None:
    folder = model(tmp_path / "used")
    assert used_by_process("org/name", folder) == 0

    mapping = "import mmap, sys; file = open(sys.argv[1], 'rb'); held = mmap.mmap(file.fileno(), 0, prot=1)"
    command = [
        sys.executable,
        "-c",
        f"{mapping}; print(flush=True); input()",
        str(folder / "weights" / "a.safetensors"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = used_by_process("org/name", folder)
        process.kill()

    assert found == process.pid


def test_a_worker_of_the_model_is_found_by_its_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "worker", "mine=org/name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found, other = used_by_process("org/name", tmp_path), used_by_process("org/nam", tmp_path)
        process.kill()

    assert (found, other) == (process.pid, 0)
