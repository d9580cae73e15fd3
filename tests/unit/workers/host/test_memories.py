"""A host learns of its devices from nvidia-smi, for which a script stands in here."""

from pathlib import Path

import pytest

from shared.models_file.reading import parse
from workers.host.hosted_models import hosted_specs
from workers.host.machine import HOST
from workers.host.memories import MIB, device_bytes, machine_of

# A device of a machine with a screen: 300 MiB are others'. The processes 11 and 12 are workers, 13 is not.
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=index,uuid,memory.total,memory.used)
    echo "0, GPU-a, 8000, 3300"; echo "1, GPU-b, 16000, 500"; echo "2, GPU-c, [N/A], [N/A]" ;;
  --query-compute-apps=gpu_uuid,pid,used_memory)
    echo "GPU-a, 11, 2000"; echo "GPU-a, 12, 1000"; echo "GPU-b, 13, 500"; echo "GPU-b, 11, [N/A]" ;;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_models_may_take_of_a_device_what_others_have_not(smi: None) -> None:
    found = machine_of(100, "auto", held_bytes=0, pids=[11, 12])

    assert found.memories == {HOST: 100, "0": 7700 * MIB, "1": 15500 * MIB}
    assert found.devices == ["0", "1"]
    assert machine_of(100, "auto", held_bytes=0).memories["0"] == 4700 * MIB


def test_the_devices_of_the_file_are_named_by_index_or_uuid_and_one_that_is_not_there_has_nothing(smi: None) -> None:
    assert machine_of(100, [1], held_bytes=0).memories == {HOST: 100, "1": 15500 * MIB}
    assert machine_of(100, ["GPU-b", 7], held_bytes=0).memories == {HOST: 100, "GPU-b": 15500 * MIB, "7": 0}
    assert machine_of(100, [], held_bytes=0).devices == []


def test_a_worker_takes_as_much_as_it_has_of_its_fullest_device(smi: None) -> None:
    assert device_bytes([11, 12]) == 3000 * MIB
    assert device_bytes([13]) == 500 * MIB
    assert device_bytes([]) == device_bytes([99]) == 0


def test_a_machine_without_the_program_has_no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert machine_of(100, "auto", held_bytes=0).devices == []
    assert device_bytes([1]) == 0


def test_a_model_is_given_the_devices_that_it_asks_for() -> None:
    text = """
    [models.one]
    source = "builtin"
    [models.two]
    engine = "vllm"
    options = {tensor_parallel_size = 2}
    [models.cpu]
    source = "builtin"
    device = "cpu"
    [models.layers]
    engine = "llamacpp"
    options = {gpu_layers = -1}
    [models.gguf]
    engine = "llamacpp"
    """

    there = hosted_specs(parse(text.encode(), Path("/etc/models.toml")), devices_max=2)
    none = hosted_specs(parse(f"[host]\ndevices = []\n{text}".encode(), Path("/etc/models.toml")), devices_max=0)

    assert {name: spec.devices for name, spec in there.items()} == {
        "one": 1,
        "two": 2,
        "cpu": 0,
        "layers": 1,
        "gguf": 0,
    }
    assert {spec.devices for spec in none.values()} == {0}
    assert {spec.environment["CUDA_VISIBLE_DEVICES"] for spec in none.values()} == {""}
    assert "CUDA_VISIBLE_DEVICES" not in there["cpu"].environment
