"""The process of a server that a command line starts. It knows nothing of models, and does not start it again."""

import http.client
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from shared.domain.errors import SettingsError
from workers.engines.command.options import CommandOptions

log = logging.getLogger(__name__)
# It leads the server's process group, outlives its SIGTERM, and ends the group when this process is gone: that closes
# the pipe it reads from.
LEASH = ("/bin/sh", "-c", 'trap "" TERM INT HUP; read -r _; kill -TERM 0; sleep 10; kill -KILL 0')
ANSWER_S = 5.0
KILLED_S = 10.0  # for a process to be gone after SIGKILL
LINE_BYTES_MAX = 2000
LINES_A_SECOND = 50
LINES_KEPT, LINES_TOLD = 20, 3


class CommandServer:
    """Its processes are one group, in the session of this process. The group ends with this process, whatever kills
    it, and is signalled as a whole."""

    def __init__(self, options: CommandOptions, *, port: int, model: str) -> None:
        self._words = options.words(port)
        self._options = options
        self._port = port
        self._model = model
        self._output = _Output(model)
        self._leash: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, once. Raises SettingsError for a program that cannot be started."""
        if not shutil.which(self._words[0]):
            raise SettingsError(f"ENGINE_OPTION run: there is no program {self._words[0]}")
        self._leash = subprocess.Popen(
            LEASH, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=self._leash.pid,
                env={**os.environ, "PORT": str(self._port)},
            )
        except OSError as error:
            self.stop()
            raise SettingsError(f"ENGINE_OPTION run: {self._words[0]} cannot be started: {error}") from error
        log.info("a server starts", extra={"model": self._model, "program": self._words[0], "port": self._port})
        assert self._process.stdout
        self._output.follow(self._process.stdout)

    @property
    def pid(self) -> int:
        assert self._process, "started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def end(self) -> str:
        """The way in which it ended, with its last lines, as the end of a sentence."""
        assert self._process
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{how}: {said}" if (said := self._output.last()) else how

    def is_ready(self) -> bool:
        """Ask the server whether it takes requests. It blocks, for ANSWER_S at most."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            connection.request("GET", self._options.ready)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End all its processes: by SIGTERM, and by SIGKILL what is left after `stop_s`, or when the first has ended.
        It blocks until they are gone."""
        if self._leash is None:
            return
        if self.is_running:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                assert self._process
                self._process.wait(self._options.stop_s)
        self._signal(signal.SIGKILL)
        for process in (self._process, self._leash):
            if process:
                process.wait(KILLED_S)
        assert self._leash.stdin
        self._leash.stdin.close()
        self._output.join()
        self._leash = None

    def _signal(self, sign: signal.Signals) -> None:
        """The leash is waited for last, so until then its number is that of the group and of no other."""
        assert self._leash
        with suppress(ProcessLookupError):
            os.killpg(self._leash.pid, sign)


class _Output:
    """Puts the server's lines into the log, LINES_A_SECOND at most, and keeps the last ones."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._kept: deque[str] = deque(maxlen=LINES_KEPT)
        self._thread: threading.Thread | None = None

    def follow(self, output: IO[bytes]) -> None:
        self._thread = threading.Thread(target=self._read, args=(output,), name="server output", daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread:
            self._thread.join(KILLED_S)

    def last(self) -> str:
        """The last lines, once the process that wrote them has ended."""
        if self._thread:
            self._thread.join(0.5)
        return " | ".join(list(self._kept)[-LINES_TOLD:])

    def _read(self, output: IO[bytes]) -> None:
        second, written, left_out = 0, 0, 0
        with output:
            for line in _lines(output):
                self._kept.append(line)
                if (now := int(time.monotonic())) != second:
                    if left_out:
                        log.warning("lines of a server are left out", extra={"model": self._model, "lines": left_out})
                    second, written, left_out = now, 0, 0
                if written < LINES_A_SECOND:
                    log.info("a server says", extra={"model": self._model, "line": line})
                    written += 1
                else:
                    left_out += 1


def _lines(output: IO[bytes]) -> Iterator[str]:
    while line := output.readline(LINE_BYTES_MAX):
        if text := line.decode(errors="replace").strip():
            yield text
