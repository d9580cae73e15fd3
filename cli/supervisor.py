"""Keeps the processes of `penstock up` running, and ends them in order."""

import threading
import time
from collections.abc import Callable, Sequence

from cli.child import Child
from cli.terminal import echo
from shared.domain.errors import SettingsError

POLL_S = 0.2
REMIND_S = 5.0
LONG_S = 600.0  # a bound beyond this tells nobody anything


class Supervisor:
    """Children are started in layers, each of which needs those below, and ended from the last layer down."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._layers: list[tuple[Sequence[Child], float]] = []

    def start(self, *children: Child, stop_s: float) -> None:
        """`stop_s`: the time for all of them to end, before they are killed."""
        self._layers.append((children, stop_s))
        for child in children:
            child.start()

    def wait_for(self, missing: Callable[[], list[str]], *, bound_s: float) -> bool:
        """Until nothing is missing; from time to time, say what is. False when asked to stop before. Raises
        SettingsError at `bound_s`, or when a child cannot run."""
        began, remind_s = time.monotonic(), REMIND_S
        while not self._stopping.is_set():
            self._look_after_all()
            lacking = "; ".join(missing())
            if not lacking:
                return True
            waited = time.monotonic() - began
            if waited >= bound_s:
                raise SettingsError(f"{lacking} (waited for {waited:.0f} s)")
            if waited >= remind_s:
                most = f", {bound_s:g} s at most" if bound_s <= LONG_S else ""
                echo(f"Waiting    {lacking}: {waited:.0f} s so far{most}")
                remind_s *= 2
            self._stopping.wait(POLL_S)
        return False

    def run(self) -> None:
        """Until asked to stop. Raises SettingsError when a child cannot run."""
        while not self._stopping.wait(POLL_S):
            self._look_after_all()

    def stop(self) -> None:
        if self._layers:
            echo("Stopping ..")
        for children, stop_s in reversed(self._layers):
            deadline = time.monotonic() + stop_s
            for child in children:
                child.terminate()
            for child in children:
                child.wait(deadline)

    def _look_after_all(self) -> None:
        for children, _ in self._layers:
            for child in children:
                if told := child.check():
                    echo(told)
                child.bound_log()
