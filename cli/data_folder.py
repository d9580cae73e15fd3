"""The folder of `penstock up`: data, uploads and logs, closed to other users, and held by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from cli.embedded_redis import brief_client
from cli.private_files import LockFile, private_folder, write_private
from cli.redis_location import REDIS_URL_FILE
from shared.domain.errors import SettingsError

LOCK = "up.lock"


class DataFolder:
    """Raises SettingsError when the folder cannot be made. One that is there keeps its mode; its parts are closed."""

    def __init__(self, path: Path) -> None:
        self.path = path if path.is_dir() else private_folder(path, option="--data")
        self.redis, self.files, self.logs = (
            private_folder(path / name, option="--data") for name in ("redis", "files", "logs")
        )
        self.redis_url = path / REDIS_URL_FILE

    @contextmanager
    def held(self, *, url: str) -> Iterator[None]:
        """`url`: where this `penstock up` serves, for the next one to say. Raises SettingsError when another one holds
        the folder."""
        lock = LockFile(self.path / LOCK)
        try:
            if not lock.take():
                raise SettingsError(self._taken(lock.holder()))
            lock.note(f"process {os.getpid()}, {url}")
            self._refuse_older_server()
            yield
        finally:
            lock.close()

    def note_redis(self, url: str) -> None:
        """For the operator's commands, which find it by itself. It may hold a password."""
        write_private(self.redis_url, url + "\n")

    def _taken(self, by: str) -> str:
        who = f" ({by})" if by else ""
        return (
            f"another `penstock up` runs in the folder {self.path}{who}: use that one, or choose another folder and "
            f"port for this one: --data {self.path}-2 --port PORT"
        )

    def _refuse_older_server(self) -> None:
        """Release 0.2 held no lock; its Redis listened on a port."""
        url = self.redis_url.read_text().strip() if self.redis_url.is_file() else ""
        if url.startswith("redis://127.0.0.1:") and _works_in(url, self.redis):
            raise SettingsError(
                f"an older `penstock up` runs in the folder {self.path} (its Redis: {url}): stop that one first, or "
                f"choose another folder for this one: --data {self.path}-2"
            )


def _works_in(url: str, folder: Path) -> bool:
    try:
        with brief_client(url) as client:
            found: Any = client.config_get("dir")
    except redis.RedisError:
        return False
    return Path(found.get("dir", "")).resolve() == folder.resolve()
