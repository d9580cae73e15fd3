"""A child process that is kept running: its log in a file, its death noticed, its end waited for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.embedded_redis import die_with_parent
from shared.errors import SettingsError
from shared.logs import refusal

EARLY_S = 5.0
EARLY_DEATHS_MAX = 3


class Child:
    """Runs `penstock ARGUMENTS`. `check` starts it again when it has died, and gives up on one that dies at once."""

    def __init__(self, name: str, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._arguments = [sys.executable, "-m", "cli", *arguments]
        self._environment = {**os.environ, **environment}
        self._log = log
        self._early_deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        with self._log.open("ab") as out:
            # Its own session: Ctrl-C in the terminal reaches `penstock up` alone, which stops all in order.
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def check(self) -> str | None:
        """A sentence when it had died and was started again. Raises SettingsError when that is pointless."""
        assert self._process
        code = self._process.poll()
        if code is None:
            return None
        early = time.monotonic() - self._began < EARLY_S
        self._early_deaths = self._early_deaths + 1 if early else 0
        if code == 2 or self._early_deaths >= EARLY_DEATHS_MAX:
            raise SettingsError(self._last_words() or f"{self.name} ended with code {code}; see {self._log}")
        self.start()
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"{self.name} died ({how}); started again"

    def terminate(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Until it has ended; killed at `deadline` (monotonic seconds)."""
        if not self._process:
            return
        try:
            self._process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        """What it told a person when it refused to start."""
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        spoken = [words for line in lines if (words := refusal(line))]
        return spoken[-1] if spoken else ""
