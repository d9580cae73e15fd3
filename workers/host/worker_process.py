"""A worker process of a host. It is written down before it starts, and it outlives its host: the next one adopts it."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from shared.domain.neighbours import known_fields
from shared.observability.logs import refusal
from shared.process.private_files import private_file, write_private
from workers.process.load_progress import PROGRESS_FILE, read
from workers.process.succession import LEFT_FILE

ID_VARIABLE = "HOSTED_WORKER"  # by which a worker is found whose host died before it knew the process id
TOLD = {PROGRESS_FILE: "progress", LEFT_FILE: "left"}
LOG_BYTES_MAX = 10_000_000
LOG_END_BYTES = 20_000
LINE_MAX = 300
DRAIN_S = 3600  # for a worker that is told to end after its running jobs; its host may tell it to hurry


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker as its host writes it down on disk. `spec` is the digest of what it was started with. `pid` and
    `created_s`, which tells its process from a later one of the same id, are 0 until it is started, and `ready_s` is 0
    until it serves. Times are seconds since 1970. `takes` is what was planned for it. One that `sleeps` can leave its
    devices; `rest` says how far that is, since `rest_s`."""

    id: str
    model: str
    names: tuple[str, ...]
    spec: str
    devices: tuple[str, ...]
    takes: Mapping[str, int]
    turn_s: float
    launched_s: float
    pid: int = 0
    created_s: float = 0
    ready_s: float = 0
    stopping: bool = False
    sleeps: bool = False
    rest: str = ""
    rest_s: float = 0


@dataclass(slots=True)
class WorkerProcess:
    """The process of a record. `child` is None if an earlier host started it."""

    record: WorkerRecord
    folder: Path
    child: "subprocess.Popen[bytes] | None" = None
    peak: dict[int, int] = field(default_factory=dict)  # bytes of each of its processes
    hurried_s: float = 0  # when it was told to end at once; 0 if it was not

    @property
    def log(self) -> Path:
        return self.folder / f"{self.record.id}.log"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.record.id}.json"

    @property
    def progress(self) -> tuple[str, float | None]:
        """The phase of its load that it told last, and how far that is, from 0 to 1, if it knows."""
        return read(self._told[PROGRESS_FILE])

    @property
    def left(self) -> bool:
        """True once the process has nothing more to do but to end."""
        return self._told[LEFT_FILE].exists()

    def note(self, **changes: Any) -> None:
        """Change the record, on disk first."""
        changed = replace(self.record, **changes)
        write_private(self.path, json.dumps(asdict(changed)))
        self.record = changed

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process in a session of its own, so that nothing that ends its host ends it."""
        self.note()
        for path in self._told.values():
            path.unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        files = {name: str(path) for name, path in self._told.items()}
        with private_file(self.log).open("ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", "cli", "worker", *arguments],
                env={**os.environ, **environment, ID_VARIABLE: self.record.id, **files},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        with suppress(psutil.NoSuchProcess):  # it has ended already, which the next look finds
            self.note(pid=self.child.pid, created_s=psutil.Process(self.child.pid).create_time())

    def exit(self) -> "Exit | None":
        """Return how the process ended; None while it runs. The status of an adopted one is not known."""
        if self.child:
            code = self.child.poll()
            return None if code is None else Exit(code, self._last_words())
        return None if self._process() else Exit(None, self._last_words())

    def signal(self, sign: signal.Signals) -> None:
        if process := self._process():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)

    def kill(self) -> None:
        """End the process and its children at once."""
        if process := self._process():
            with suppress(psutil.NoSuchProcess):
                for each in [*process.children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()

    def pids(self) -> list[int]:
        process = self._process()
        with suppress(psutil.NoSuchProcess):
            return [each.pid for each in [process, *process.children(recursive=True)]] if process else []
        return []

    def host_bytes(self) -> int:
        """Return the most main memory that its processes had, each at its own peak."""
        for pid in self.pids():
            with suppress(OSError, ValueError):
                self.peak[pid] = max(_peak_bytes(pid), self.peak.get(pid, 0))
        return sum(self.peak.values())

    def resident_bytes(self) -> int:
        """Return the main memory that its processes have now."""
        found = 0
        for pid in self.pids():
            with suppress(psutil.Error):
                found += int(psutil.Process(pid).memory_info().rss)
        return found

    def forget(self) -> None:
        for path in (self.path, *self._told.values()):
            path.unlink(missing_ok=True)

    def bound_log(self) -> None:
        """Empty a large log but for its end. The process holds the file open, so a line that is written meanwhile may
        be lost."""
        with suppress(OSError):
            if self.log.stat().st_size > LOG_BYTES_MAX:
                end = self._log_end()
                os.truncate(self.log, 0)
                with self.log.open("ab") as log:
                    log.write(end)

    @property
    def _told(self) -> dict[str, Path]:
        """The files in which the process tells its host something, by the variables that name them."""
        return {name: self.folder / f"{self.record.id}.{suffix}" for name, suffix in TOLD.items()}

    def _process(self) -> psutil.Process | None:
        """The process, if it runs: another one may have its id by now."""
        with suppress(psutil.Error):
            process = psutil.Process(self.record.pid) if self.record.pid else None
            if process and abs(process.create_time() - self.record.created_s) < 1:
                return process if process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def _log_end(self) -> bytes:
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_END_BYTES))
            return log.read()
        return b""

    def _last_words(self) -> str:
        """Return why it refused to run, or else the last line that it wrote."""
        lines = self._log_end().decode(errors="replace").splitlines()[-20:]
        reasons = [reason for line in lines if (reason := refusal(line))]
        return (reasons or lines or [""])[-1][:LINE_MAX]


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a worker: its status, None if nobody knows, and what it wrote last."""

    code: int | None
    words: str

    def __str__(self) -> str:
        if self.code is not None and self.code < 0:
            with suppress(ValueError):
                return f"its process was ended by {signal.Signals(-self.code).name}"
        return self.words or f"its process ended with status {self.code}"


def adopted(folder: Path) -> Iterator[WorkerProcess]:
    """Yield the workers that earlier hosts wrote down in the folder; of some, the process has ended since."""
    for path in sorted(folder.glob("*.json")):
        try:
            process = WorkerProcess(_decoded(path.read_text()), folder)
        except (OSError, ValueError, TypeError, KeyError):
            path.unlink(missing_ok=True)  # half a record cannot be: it is of a release that wrote less
            continue
        if not process.record.pid and (found := _started_as(process.record.id)):
            process.note(pid=found.pid, created_s=found.create_time())
        yield process


def _decoded(text: str) -> WorkerRecord:
    """Read a record. A field that this release does not know is left out, so that its worker is adopted, too."""
    data = json.loads(text)
    lists = {name: tuple(data[name]) for name in ("names", "devices")}
    return WorkerRecord(**known_fields(WorkerRecord, {**data, **lists}))


def free_id(model: str, taken: Collection[str]) -> str:
    """Return an id for one more worker of the model that can be a file's name."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in model)[:60]
    name = plain if plain == model else f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
    return next(each for n in itertools.count(1) if (each := f"{name}-{n}") not in taken)


def _started_as(worker_id: str) -> psutil.Process | None:
    """Find the process that was started as this worker, whatever its id is."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(ID_VARIABLE) == worker_id and process.pid == os.getsid(process.pid):
                return process
    return None


def _peak_bytes(pid: int) -> int:
    """The most memory that the process had resident; now, where the system does not tell its peak."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(lines[0][1]) * 1024 if lines else 0
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
