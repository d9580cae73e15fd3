"""A process that is kept running: its log in a file of bounded size, its death noticed, its end waited for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cli.embedded_redis import die_with_parent
from cli.private_files import private_file
from shared.domain.errors import SettingsError
from shared.observability.logs import refusal

EARLY_S = 10.0
EARLY_DEATHS_MAX = 5
PAUSE_MAX_S = 30.0
LOG_BYTES_MAX = 10_000_000
REFUSED = 2  # exit status: it told in a sentence why it cannot run
LINE_MAX = 300


class Child:
    """`check` starts it again when it has died: at once, then after a growing pause as long as it dies early; it gives
    up on one that refuses to run, or dies early several times in a row."""

    def __init__(self, name: str, launch: Callable[[], subprocess.Popen[bytes]], *, log: Path) -> None:
        self.name = name
        self.log = log
        self._launch = launch
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._early_deaths = 0
        self._again_at = 0.0

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        self._began = time.monotonic()
        self._process = self._launch()

    def check(self) -> str | None:
        """Look after it once; a sentence when it has died. Raises SettingsError when to start it again is pointless."""
        if self._process is None:
            if time.monotonic() >= self._again_at:
                self.start()
            return None
        code = self._process.poll()
        return None if code is None else self._died(code)

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

    def bound_log(self) -> None:
        """Set a large log aside, in place of the one before. It is copied and emptied, since the process holds it open:
        a line that is written just then may be lost."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(self.log, private_file(self.log.with_name(f"{self.log.name}.1")))
            os.truncate(self.log, 0)

    def _died(self, code: int) -> str:
        early = time.monotonic() - self._began < EARLY_S
        self._early_deaths = self._early_deaths + 1 if early else 0
        self._process = None
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        if code == REFUSED:
            raise SettingsError(self._last_words() or f"{self.name} refuses to run; see {self.log}")
        if self._early_deaths >= EARLY_DEATHS_MAX:
            often = f"{self.name} died at its start {self._early_deaths} times in a row ({how})"
            raise SettingsError(f"{often}; {self.log} ends with: {''.join(self._log_end()[-1:])[:LINE_MAX]}")
        pause = pause_s(self._early_deaths)
        self._again_at = time.monotonic() + pause
        if not pause:
            self.start()
            return f"{self.name} died ({how}); started again"
        return f"{self.name} died early ({how}), {self._early_deaths} times in a row; started again in {pause:g} s"

    def _last_words(self) -> str:
        """What it told a person when it refused to start."""
        spoken = [words for line in self._log_end() if (words := refusal(line))]
        return spoken[-1] if spoken else ""

    def _log_end(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-20:] if self.log.exists() else []


def pause_s(early_deaths: int) -> float:
    """None before the first new start, then twice as long each time."""
    return min(PAUSE_MAX_S, 2.0 ** (early_deaths - 2)) if early_deaths > 1 else 0.0


def penstock(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, umask: int = -1
) -> Callable[[], subprocess.Popen[bytes]]:
    """What starts `penstock ARGUMENTS`. `umask`: of the files it writes, -1 for our own."""

    def launch() -> subprocess.Popen[bytes]:
        with private_file(log).open("ab") as out:
            # Its own session: Ctrl-C in the terminal reaches `penstock up` alone, which stops all in order.
            return subprocess.Popen(
                [sys.executable, "-m", "cli", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,
                umask=umask,
            )

    return launch
