"""The memory that the models of this machine may take, and that a process has of its devices."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workers.host.machine import HOST, Machine
from workers.process.free_memory import memory_available

SPARE_SHARE = 0.05  # of the free memory, left to everything else
QUERY_S = 10.0
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as nvidia-smi tells of it, in bytes. `used` is by all processes."""

    index: str
    uuid: str
    total: int
    used: int


def machine_of(
    memory: int | None, devices: Literal["auto"] | Sequence[int | str], *, held_bytes: int, pids: Iterable[int] = ()
) -> Machine:
    """Return what models may take: `memory` of the main memory, or most of what is free together with what its adopted
    workers hold; and of the devices, named by their index or UUID, what no other process than `pids` has. A device that
    is not there has no memory."""
    free = int((memory_available() + held_bytes) * (1 - SPARE_SHARE)) if memory is None else memory
    there, ours = _devices(), _held(pids)
    for_models = {each.uuid: each.total - max(each.used - ours.get(each.uuid, 0), 0) for each in there}
    by_name = {name: each for each in there for name in (each.index, each.uuid)}
    chosen = [each.index for each in there] if devices == "auto" else [str(each) for each in devices]
    known = {name: for_models[by_name[name].uuid] if name in by_name else 0 for name in chosen}
    return Machine(memories={HOST: free, **known})


def device_bytes(pids: Iterable[int]) -> int:
    """Return the most memory of one device that these processes have now; 0 without devices."""
    return max(_held(pids).values(), default=0)


def _held(pids: Iterable[int]) -> dict[str, int]:
    """Return what these processes have of each device, by its UUID."""
    wanted, found = set(pids), dict[str, int]()
    if not wanted:
        return found
    for row in _smi("--query-compute-apps=gpu_uuid,pid,used_memory"):
        if len(row) == 3 and row[1].isdigit() and row[2].isdigit() and int(row[1]) in wanted:
            found[row[0]] = found.get(row[0], 0) + int(row[2]) * MIB
    return found


def _devices() -> list[Device]:
    rows = _smi("--query-gpu=index,uuid,memory.total,memory.used")
    return [
        Device(index=row[0], uuid=row[1], total=int(row[2]) * MIB, used=int(row[3]) * MIB)
        for row in rows
        if len(row) == 4 and row[2].isdigit() and row[3].isdigit()
    ]


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
