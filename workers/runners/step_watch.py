"""The step watch tells other threads whether the engine's thread still advances."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Histogram


class StepWatch:
    """The engine's thread changes it; the other threads only call `alive`."""

    def __init__(self, durations: Histogram) -> None:
        self._durations = durations
        self._began = 0.0
        self._busy_since: float | None = None
        self._stuck_since: float | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, and record its duration unless it fails."""
        self.begin()
        try:
            yield
            self._durations.observe(time.monotonic() - self._began)
        finally:
            self.end()

    def begin(self) -> None:
        self._busy_since = self._began = time.monotonic()

    def end(self) -> float:
        """Seconds since `begin`."""
        self._busy_since = None
        return time.monotonic() - self._began

    def record(self, *, progress: bool) -> None:
        """Note whether the step that has just ended got anywhere."""
        self._stuck_since = None if progress else self._stuck_since or time.monotonic()

    def alive(self, *, step_timeout_s: float) -> bool:
        """False if a step or a reading has taken longer than that, or no step has got anywhere for that long."""
        since = [at for at in (self._busy_since, self._stuck_since) if at is not None]
        return all(time.monotonic() - at < step_timeout_s for at in since)
