"""A plan asks its host for these actions. `why` is a sentence for the log and for operators."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.domain.hosting import When


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Start a worker of the model on these devices, in memory that is free now. It takes `takes` (a whole memory, if
    that is not known yet), and keeps its place for `turn_s` once it is ready."""

    model: str
    devices: tuple[str, ...]
    takes: Mapping[str, int]
    turn_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    worker: str
    turn_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    worker: str
    when: When
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    worker: str
    when: When
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The model can never be loaded here: its waiting jobs fail for this reason."""

    model: str
    why: str


Action = Load | Wake | Sleep | Unload | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The actions, and how soon time alone may bring others: plan again then, if nothing else has happened."""

    actions: tuple[Action, ...]
    again_s: float
