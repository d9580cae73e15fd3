"""A worker tells its host how far its load is, in a file that the host names. Without a host nothing is told."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

PROGRESS_FILE = "HOSTED_PROGRESS_FILE"
WEIGHTS, WARM_UP = "weights", "warm-up"
EACH_S = 0.2  # between two writes of one phase
Item = TypeVar("Item")


def tell(phase: str, fraction: float | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Say in which phase the load is, and how far that phase is, from 0 to 1; None if nobody can tell."""
    if not (name := environment.get(PROGRESS_FILE)):
        return
    path = Path(name)
    with suppress(OSError):
        written = path.with_name(f"{path.name}.new")
        written.write_text(json.dumps([phase, fraction]))
        written.replace(path)


def told_while(
    phase: str,
    items: Iterable[Item],
    total: int,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """Yield the items, and tell from time to time how many of them have been taken."""
    tell(phase, 0.0, environment)
    again = clock() + EACH_S
    for number, item in enumerate(items, 1):
        yield item
        if total and clock() >= again:
            tell(phase, min(number / total, 1.0), environment)
            again = clock() + EACH_S


def read(path: Path) -> tuple[str, float | None]:
    """Return the phase and its fraction that a worker wrote last; "" if it has told nothing yet."""
    try:
        phase, fraction = json.loads(path.read_text())
        return str(phase), None if fraction is None else float(fraction)
    except (OSError, ValueError, TypeError):
        return "", None
