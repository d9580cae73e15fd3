"""Keeps the processes of `penstock up` running, and ends them in order."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from cli.child import Child
from cli.terminal import echo
from shared.domain.errors import SettingsError

POLL_S = 0.2
REMIND_S = 5.0
LONG_S = 600.0  # a longer bound is not worth printing


class Supervisor:
    """Starts children in layers, where each layer needs the ones before it, and stops the last layer first."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._layers: list[tuple[Sequence[Child], float]] = []

    def start(self, *children: Child, stop_s: float) -> None:
        """Start one layer of children. On a stop they have `stop_s` seconds to end before they are killed."""
        self._layers.append((children, stop_s))
        for child in children:
            child.start()

    def wait_for(self, missing: Callable[[], list[str]], *, bound_s: float) -> bool:
        """Wait until `missing` returns nothing, and print what is missing from time to time. Return False if a stop was
        asked for first. Raises SettingsError after `bound_s`, or if a child cannot run."""
        began, remind_s = time.monotonic(), REMIND_S
        while not self._stopping.is_set():
            self._check_children()
            still_missing = "; ".join(missing())
            if not still_missing:
                return True
            waited = time.monotonic() - began
            if waited >= bound_s:
                raise SettingsError(f"{still_missing} (waited for {waited:.0f} s)")
            if waited >= remind_s:
                most = f", {bound_s:g} s at most" if bound_s <= LONG_S else ""
                echo(f"Waiting    {still_missing}: {waited:.0f} s so far{most}")
                remind_s *= 2
            self._stopping.wait(POLL_S)
        return False

    def run(self, news: Callable[[], Iterable[str]] = tuple) -> None:
        """Keep the children running until a stop is asked for, and print the news. Raises SettingsError if a child
        cannot run."""
        while not self._stopping.wait(POLL_S):
            self._check_children()
            for line in news():
                echo(line)

    def stop(self) -> None:
        if self._layers:
            echo("Stopping ...")
        for children, stop_s in reversed(self._layers):
            deadline = time.monotonic() + stop_s
            for child in children:
                child.terminate()
            for child in children:
                child.wait(deadline)

    def _check_children(self) -> None:
        for children, _ in self._layers:
            for child in children:
                if report := child.check():
                    echo(report)
                child.bound_log()
