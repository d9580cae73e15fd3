"""A child process that is kept running, with a log file of bounded size."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cli.embedded_redis import die_with_parent
from shared.domain.errors import SettingsError
from shared.observability.logs import refusal
from shared.process.private_files import private_file

EARLY_S = 10.0
EARLY_DEATHS_MAX = 5
PAUSE_MAX_S = 30.0
LOG_BYTES_MAX = 10_000_000
REFUSED = 2  # exit status of a process that logged in a sentence why it cannot run
LINE_MAX = 300


class Child:
    """`check` restarts the process after its death: at once, then after a growing pause while deaths come early. It
    gives up on a process that refuses to run, or that dies early several times in a row."""

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
        """The process id, or 0 while the process does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        self._began = time.monotonic()
        self._process = self._launch()

    def check(self) -> str | None:
        """Restart the process if it has died; return a sentence about its death, or None.

        Raises SettingsError if another start would be pointless."""
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
        """Wait for the process to end; kill it at `deadline` (monotonic seconds)."""
        if not self._process:
            return
        try:
            self._process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def bound_log(self) -> None:
        """Move a large log to `.1`, replacing the previous one. The process holds the file open, so the log is copied
        and truncated: a line that is written in between may be lost."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(self.log, private_file(self.log.with_name(f"{self.log.name}.1")))
            os.truncate(self.log, 0)

    def _died(self, code: int) -> str:
        early = time.monotonic() - self._began < EARLY_S
        self._early_deaths = self._early_deaths + 1 if early else 0
        self._process = None
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        if code == REFUSED:
            raise SettingsError(self._refusal() or f"{self.name} refuses to run; see {self.log}")
        if self._early_deaths >= EARLY_DEATHS_MAX:
            often = f"{self.name} died at its start {self._early_deaths} times in a row ({how})"
            raise SettingsError(f"{often}; {self.log} ends with: {''.join(self._log_end()[-1:])[:LINE_MAX]}")
        pause = pause_s(self._early_deaths)
        self._again_at = time.monotonic() + pause
        if not pause:
            self.start()
            return f"{self.name} died ({how}) and was started again"
        return f"{self.name} died early ({how}), {self._early_deaths} times in a row; it starts again in {pause:g} s"

    def _refusal(self) -> str:
        """Return the reason that the process logged for its refusal to run, or an empty string."""
        reasons = [reason for line in self._log_end() if (reason := refusal(line))]
        return reasons[-1] if reasons else ""

    def _log_end(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-20:] if self.log.exists() else []


def pause_s(early_deaths: int) -> float:
    """Return the pause before the next start: none after the first early death, then twice as long each time."""
    return min(PAUSE_MAX_S, 2.0 ** (early_deaths - 2)) if early_deaths > 1 else 0.0


def penstock(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, umask: int = -1
) -> Callable[[], subprocess.Popen[bytes]]:
    """Return a function that starts `penstock ARGUMENTS`. `umask` applies to the files it writes; -1 keeps our own."""

    def launch() -> subprocess.Popen[bytes]:
        with private_file(log).open("ab") as out:
            # -P: a folder `api` or `shared` in the working directory of `penstock up` must not be imported.
            # A session of its own: Ctrl-C in the terminal reaches `penstock up` alone, which stops children in order.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "cli", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,
                umask=umask,
            )

    return launch
