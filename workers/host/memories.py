"""The memory that the models of this machine may take, and that a process has of its devices."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Literal

from workers.host.machine import HOST, Machine
from workers.process.free_memory import memory_available

SPARE_SHARE = 0.05  # of the free memory, left to everything else
QUERY_S = 10.0
MIB = 2**20


def machine_of(memory: int | None, devices: Literal["auto"] | Sequence[int | str], *, held_bytes: int) -> Machine:
    """Return what models may take: `memory` of the main memory, or most of what is free together with what its adopted
    workers hold; and all of the devices."""
    free = int((memory_available() + held_bytes) * (1 - SPARE_SHARE)) if memory is None else memory
    totals = _device_totals()
    chosen = list(totals) if devices == "auto" else [str(each) for each in devices]
    return Machine(memories={HOST: free, **{each: totals.get(each, 0) for each in chosen}})


def device_bytes(pids: Iterable[int]) -> int:
    """Return the most memory of one device that these processes have now; 0 without devices."""
    wanted, found = set(pids), dict[str, int]()
    for row in _smi("--query-compute-apps=gpu_uuid,pid,used_memory"):
        if len(row) == 3 and row[1].isdigit() and row[2].isdigit() and int(row[1]) in wanted:
            found[row[0]] = found.get(row[0], 0) + int(row[2]) * MIB
    return max(found.values(), default=0)


def _device_totals() -> dict[str, int]:
    rows = _smi("--query-gpu=index,memory.total")
    return {row[0]: int(row[1]) * MIB for row in rows if len(row) == 2 and row[1].isdigit()}


def _smi(query: str) -> list[list[str]]:
    """Ask nvidia-smi; [] on a machine without it."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    try:
        asked = [program, query, "--format=csv,noheader,nounits"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
