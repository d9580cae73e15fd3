"""Hosts tell this of themselves and of their models, and are given these orders. Times are seconds since 1970."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


class HostedState(StrEnum):
    """The state of a model on one host."""

    CONFIGURED = "configured"  # it is in the file, and no worker runs
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # its last worker is told to end
    ASLEEP = "asleep"
    FAILED = "failed"  # its last load did not succeed; a later request tries again


class OrderVerb(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    SWITCH = "switch"
    KEEP = "keep"


class When(StrEnum):
    """A worker ends at one of these times: once it has no work; after the running jobs, while none is claimed any more;
    or now, with its running jobs handed back."""

    IDLE = "idle"
    RUNNING = "running"
    NOW = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host that is alive. `machine` names its operating system's current start, which the containers of one machine
    share. `memory_bytes` is what models may take, and `free_bytes` what they have not taken, of the main memory.
    `file_error` says why the file could not be read when it was looked at last; what was read before still holds.
    `file_change` says in what the file that holds differs from the one before it."""

    id: str
    hostname: str
    machine: str
    pid: int
    memory_bytes: int = 0
    free_bytes: int = 0
    devices: tuple[str, ...] = ()
    file: str = ""
    file_digest: str = ""
    file_error: str = ""
    file_change: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedModel:
    """A model as one host has it. `source` is a folder or a hub id, as its file says. `reason` says why its last load
    failed; it is kept until a load succeeds. While it loads, `phase` and `progress` (0 to 1) tell how far it is;
    `estimated` if that is only by how long its last load took.
    `memory_bytes` and `load_s` are learnt; 0 is unknown. It is unloaded at `unloads_at_s` if it stays idle (0: not),
    and kept by an operator until `kept_until_s`. A `pinned` model is unloaded for no other. `workers` are alive, of
    `workers_least` to `workers_most`."""

    host: str
    model: str
    state: HostedState
    since_s: float
    source: str = ""
    reason: str = ""
    phase: str = ""
    progress: float = 0
    estimated: bool = False
    memory_bytes: int = 0
    load_s: float = 0
    unloads_at_s: float = 0
    kept_until_s: float = 0
    pinned: bool = False
    workers: int = 0
    workers_least: int = 1
    workers_most: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An operator wants this of one host. `when` is for unload and switch. `until_s` is for keep; 0 ends the keeping.
    A switch unloads `model` and loads `instead`."""

    id: str
    verb: OrderVerb
    model: str
    when: When = When.IDLE
    until_s: float = 0
    instead: str = ""


def load_left_s(records: Iterable[HostedModel], now_s: float) -> float:
    """Estimate how soon one of the hosts has the model loaded; 0 if one has, or if nobody can tell: it was never loaded
    anywhere, and does not say how far it is."""
    return min((_left_s(record, now_s) for record in records), default=0.0)


def _left_s(record: HostedModel, now_s: float) -> float:
    match record.state:
        case HostedState.READY | HostedState.ASLEEP:  # waking up takes a moment
            return 0.0
        case HostedState.LOADING:
            took_s = max(now_s - record.since_s, 0.0)
            if record.estimated or not record.progress:
                return min(max(record.load_s - took_s, 0.0), record.load_s)
            return took_s * (1 - record.progress) / record.progress
        case HostedState.CONFIGURED | HostedState.DRAINING | HostedState.FAILED:
            return record.load_s
        case _:
            assert_never(record.state)
