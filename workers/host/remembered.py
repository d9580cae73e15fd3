"""A host keeps on disk, beyond its end, what it learns of its models and is told of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.domain.neighbours import known_fields
from shared.process.private_files import write_private


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """A host remembers of a model what a worker took at its peak, of the main memory and of each of its devices (0 is
    unknown) and what it kept of both while it slept, how long the last load and the last waking took, and until when an
    operator keeps it. One that `sleeps_badly` died when it was put to sleep. `spec` is the digest of what was
    measured."""

    spec: str = ""
    host_bytes: int = 0
    device_bytes: int = 0
    load_s: float = 0
    asleep_host_bytes: int = 0
    asleep_device_bytes: int = 0
    wake_s: float = 0
    sleeps_badly: bool = False
    kept_until_s: float = 0


@dataclass(slots=True)
class Memory:
    """Every model that this machine remembers, in one file."""

    path: Path
    models: dict[str, Remembered] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Memory":
        """Read the file; one that is missing or no file of a host remembers nothing."""
        try:
            data: Mapping[str, Any] = json.loads(path.read_text())
            return cls(path, {name: Remembered(**known_fields(Remembered, about)) for name, about in data.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls(path)

    def of(self, model: str, spec: str) -> Remembered:
        """Return what is known. What was measured of the model before its table of the file changed does not count."""
        found = self.models.get(model, Remembered())
        return found if found.spec == spec else Remembered(kept_until_s=found.kept_until_s)

    def note(self, model: str, spec: str, **changes: Any) -> None:
        changed = replace(self.of(model, spec), spec=spec, **changes)
        if changed != self.models.get(model):
            self.models[model] = changed
            write_private(self.path, json.dumps({name: asdict(each) for name, each in self.models.items()}))
