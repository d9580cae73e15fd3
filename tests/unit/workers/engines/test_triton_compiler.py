"""Triton compiles the kernels for devices that are not here: once for each of few forms, whatever the steps look like,
and in the shared memory that these devices have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
# Compute capabilities, and the bytes of shared memory that one program may have on them.
A100, L4, H100 = (80, 166_912), (89, 101_376), (90, 232_448)


@pytest.mark.parametrize(
    ("device", "dtype", "size"),
    [(H100, "bfloat16", 128), (L4, "float16", 256), (L4, "float32", 256), (A100, "bfloat16", 96)],
)
def test_no_step_makes_a_kernel_be_compiled_anew(
    tmp_path: Path, device: tuple[int, int], dtype: str, size: int
) -> None:
    if not os.environ.get("CI"):  # CI installs it, so it must be there
        pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    capability, shared_max = device
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_compiler", str(capability), dtype, str(size)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    found = json.loads(done.stdout)
    # Single tokens read in one part and in several, and chunks.
    assert sorted(found["compiled"]) == ["_attend", "_attend", "_attend", "_combine", "_store"]
    assert found["shared"] <= shared_max
