"""The terminal of `penstock up` is told of changes at its host: of its models file, and of its models."""

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.bounded import run_bounded
from cli.child import Child
from shared.catalog.hosting import Hosting
from shared.domain.errors import QueueUnavailable
from shared.domain.hosting import Host, HostedModel, HostedState
from shared.models_file.reading import ModelsFile
from shared.models_file.tables import Load
from shared.redis.client import connect
from workers.host.announcement import Announcement

NEWS_S = 2.0


class HostWatch:
    """The host that runs beside the API, as it tells of itself in Redis."""

    def __init__(self, url: str, file: ModelsFile, child: Child) -> None:
        self._url = url
        self._file = file
        self._child = child
        self._view = HostView()
        self._waited: list[str] = []
        self._look_at = 0.0

    def is_there(self) -> bool:
        """Raises QueueUnavailable."""
        self._view = run_bounded(self._read())
        return self._view.host is not None

    def still_loading(self) -> str:
        """Continue the line that says that everything is ready."""
        self._waited = self._view.still_loading(self._file)
        return f"; still loading: {', '.join(self._waited)} (requests wait for it)" if self._waited else ""

    def news(self) -> list[str]:
        """Return what has changed, at most once in NEWS_S."""
        if time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + NEWS_S
        try:
            now = run_bounded(self._read())
        except QueueUnavailable:
            return []
        if now.host is None:  # it starts again
            return []
        before, self._view = self._view, now
        return [*news(before, now), *loaded(self._waited, now)]

    async def _read(self) -> "HostView":
        client = connect(self._url)
        try:
            return await view_of(Hosting(client), self._child.pid, socket.gethostname())
        finally:
            await client.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A host and its models, as Redis has them at one moment; `host` is None while it has told nothing."""

    host: Host | None = None
    models: Mapping[str, HostedModel] = field(default_factory=dict)

    def still_loading(self, file: ModelsFile) -> list[str]:
        """Return the models that the file has loaded at the start, and that are on their way."""
        at_start = [name for name, model in file.models.items() if model.load is Load.AT_START]
        over = {HostedState.READY, HostedState.FAILED}
        return [name for name in at_start if not (name in self.models and self.models[name].state in over)]


async def announce(url: str, file: ModelsFile) -> None:
    """List the models of the file before the API serves, so that it knows them from its first request on."""
    client = connect(url)
    try:
        await Announcement(client).write(file)
    finally:
        await client.aclose()


async def view_of(hosting: Hosting, pid: int, hostname: str) -> HostView:
    """Read the host that runs as this process of this machine. Raises QueueUnavailable."""
    found = [host for host in await hosting.hosts() if (host.pid, host.hostname) == (pid, hostname)]
    if not found:
        return HostView()
    host = found[0]
    records = [record for of_one in (await hosting.all()).values() for record in of_one if record.host == host.id]
    return HostView(host=host, models={record.model: record for record in records})


def news(before: HostView, now: HostView) -> Iterator[str]:
    """Yield a line for each thing that an operator wants to know of."""
    if before.host and now.host:
        yield from _of_file(before.host, now.host)
    for name, record in now.models.items():
        earlier = before.models.get(name)
        if record.state is HostedState.FAILED and (earlier is None or earlier.reason != record.reason):
            yield f"Failed     {name}: {record.reason}"


def loaded(waited: list[str], now: HostView) -> Iterator[str]:
    """Yield a line for each model that was waited for and is there; take it out of the list."""
    for name in list(waited):
        if (record := now.models.get(name)) and record.state is HostedState.READY:
            waited.remove(name)
            yield f"Loaded     {name} after {record.load_s:.1f} s"


def _of_file(before: Host, now: Host) -> Iterator[str]:
    if now.file_error and now.file_error != before.file_error:
        yield f"Wrong      {now.file_error}\n           What was read before holds."
    elif now.file_digest != before.file_digest:
        yield f"Read       {Path(now.file).name} again: {now.file_change}"
    elif before.file_error and not now.file_error:
        yield f"Read       {Path(now.file).name} again: it is right, and as it was"
