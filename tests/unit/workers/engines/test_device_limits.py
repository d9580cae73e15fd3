"""The step sizes and the KV cache fit the device, and a device that cannot serve is refused in one sentence."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.domain.errors import SettingsError
from shared.settings import load_settings
from tests.models import random_model
from workers.engines.native.agreement import disagreement, own_logits
from workers.engines.native.device_limits import GIB, DeviceMemory, step_sizes, try_largest_steps
from workers.engines.native.loader import load_torch_engine
from workers.engines.native.weights.placement import placement
from workers.protocols import EngineBroken, OutOfMemory

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "on_cuda", "on_cpu"),
    [
        ({}, (256, 8192), (32, 512)),
        ({"sequences_max": 32}, (32, 8192), (32, 512)),
        ({"sequences_max": 7, "batch_tokens_max": 9}, (7, 9), (7, 9)),
    ],
)
def test_steps_are_larger_on_a_gpu_unless_their_size_is_set(
    given: dict[str, int], on_cuda: tuple[int, int], on_cpu: tuple[int, int]
) -> None:
    settings = load_settings(**given)

    assert step_sizes(settings, CUDA) == on_cuda
    assert step_sizes(settings, CPU) == on_cpu


def test_a_setting_of_the_environment_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SEQUENCES_MAX", "32")

    assert step_sizes(load_settings(), CUDA) == (32, 8192)


def test_the_cache_takes_the_workers_part_of_the_device_less_weights_and_largest_step() -> None:
    alone = DeviceMemory(total=80 * GIB, free=63 * GIB, held=16 * GIB)

    assert alone.cache_room(4 * GIB, 0.9) == pytest.approx((72 - 16 - 4) * GIB)
    assert alone.cache_room(4 * GIB, 0.5) == pytest.approx((40 - 16 - 4) * GIB)


def test_two_workers_on_a_device_get_the_same_part_whoever_comes_first() -> None:
    first = DeviceMemory(total=80 * GIB, free=63 * GIB, held=16 * GIB)
    room = first.cache_room(2 * GIB, 0.45)
    second = DeviceMemory(total=80 * GIB, free=63 * GIB - room - 17 * GIB, held=16 * GIB)

    assert second.cache_room(2 * GIB, 0.45) == room == pytest.approx(18 * GIB)


def test_a_second_worker_takes_no_more_than_is_left() -> None:
    second = DeviceMemory(total=80 * GIB, free=20 * GIB, held=5 * GIB)

    assert second.cache_room(2 * GIB, 0.9) == pytest.approx((20 - 1.6 - 2) * GIB)


def test_a_device_without_room_for_the_cache_is_refused_with_the_figures() -> None:
    full = DeviceMemory(total=24 * GIB, free=2 * GIB, held=15 * GIB)

    with pytest.raises(
        SettingsError, match=r"^PENSTOCK_GPU_MEMORY_UTILIZATION: 0.7 of the device's 24.0 GiB leaves no"
    ):
        full.cache_room(3 * GIB, 0.7)


def test_the_largest_steps_have_the_size_of_the_limits(tmp_path: Path) -> None:
    random_model(tmp_path, "LlamaConfig", {})
    engine: Any = load_torch_engine(str(tmp_path), load_settings(sequences_max=6, batch_tokens_max=90))
    computed = []
    original = engine.compute

    def compute(plan: Any) -> Any:
        computed.append((len(plan.ids), plan.decoding, len(plan.keep)))
        return original(plan)

    engine.compute = compute
    try_largest_steps(engine)

    assert computed == [(96, 0, 6), (6, 6, 6)]  # 90 tokens, filled to a usual number


def test_a_largest_step_that_does_not_fit_names_the_setting(tmp_path: Path) -> None:
    random_model(tmp_path, "LlamaConfig", {})
    engine: Any = load_torch_engine(str(tmp_path), load_settings())

    def full(plan: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine.compute = full
    with pytest.raises(SettingsError, match=r"PENSTOCK_BATCH_TOKENS_MAX: a step of 512 tokens and 32 sequences does"):
        try_largest_steps(engine)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), EngineBroken),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
    ],
)
def test_a_device_that_fails_in_a_trial_is_not_taken_for_a_kernel_that_does_not_agree(
    tmp_path: Path, raised: Exception, expected: type[Exception]
) -> None:
    reference = random_model(tmp_path, "LlamaConfig", {})
    engine: Any = load_torch_engine(str(tmp_path), load_settings())

    def broken(*_: Any) -> None:
        raise raised

    engine.kernel = engine.kernel._replace(write=broken)
    with pytest.raises(expected):
        disagreement(engine, own_logits(reference))


def test_the_device_of_the_settings_becomes_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)

    assert placement(load_settings(device="cuda:1"))["device_map"] == {"": CUDA}
    assert made_current == [CUDA]
    with pytest.raises(SettingsError, match="PENSTOCK_DEVICE: there is no cuda:2; torch finds 2 CUDA devices"):
        placement(load_settings(device="cuda:2"))
    assert made_current == [CUDA]


def test_tf32_is_for_a_cuda_device_that_is_asked_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)

    placement(load_settings(device="cpu", tf32=True))
    placement(load_settings(device="cuda"))
    assert chosen == []
    placement(load_settings(device="cuda", tf32=True))
    assert chosen == ["high"]


def test_torch_without_an_error_of_its_own_for_devices_is_served_too() -> None:
    program = "import torch; del torch.AcceleratorError; from workers.engines.native.torch_errors import translated\n"
    program += "try:\n  with translated(): raise RuntimeError('CUDA error: device-side assert triggered')\n"
    program += "except Exception as error: print(type(error).__name__)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "EngineBroken"
