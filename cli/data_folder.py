"""The data folder of `penstock up`: private to its user, and held by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from cli.embedded_redis import brief_client
from cli.redis_location import API_URL_FILE, REDIS_URL_FILE
from shared.domain.errors import SettingsError
from shared.process.private_files import LockFile, private_folder, write_private

LOCK = "up.lock"


class DataFolder:
    """Redis's data, uploads and logs. An existing folder keeps its mode, but its sub-folders are closed to other users.
    Raises SettingsError if the folder cannot be created."""

    def __init__(self, path: Path) -> None:
        self._parts = [path / name for name in ("redis", "files", "logs")]
        self._new = [each for each in (*self._parts, path, *path.parents) if not os.path.exists(each)]
        self.path = path if path.is_dir() else private_folder(path, option="--data")
        self.redis, self.files, self.logs = (private_folder(part, option="--data") for part in self._parts)
        self.redis_url = path / REDIS_URL_FILE
        self.api_url = path / API_URL_FILE

    @contextmanager
    def held(self, *, url: str) -> Iterator[None]:
        """Hold the folder. `url` is where this `penstock up` serves; another one names it in its error. Raises
        SettingsError if another `penstock up` holds the folder."""
        lock = LockFile(self.path / LOCK)
        try:
            if not lock.take():
                raise SettingsError(self._held_by(lock.holder()))
            lock.note(f"process {os.getpid()}, {url}")
            try:
                self._refuse_older_server()
                yield
            finally:
                self.api_url.unlink(missing_ok=True)
                self._remove_if_unused()
        finally:
            lock.close()

    def note_redis(self, url: str) -> None:
        """Write down Redis's URL for the operator's commands. It may hold a password."""
        write_private(self.redis_url, url + "\n")

    def note_api(self, url: str) -> None:
        """Write down the API's URL for `penstock chat`; `held` removes it at the end."""
        write_private(self.api_url, url + "\n")

    def _remove_if_unused(self) -> None:
        """Remove the folders of a start that was refused, as long as they are new and empty. The lock is still held; a
        process that has opened the lock file meanwhile notices that the file is gone."""
        if not set(self._parts) <= set(self._new) or any(any(part.iterdir()) for part in self._parts):
            return
        (self.path / LOCK).unlink()
        with suppress(OSError):  # the user's own folder has other things in it
            for folder in self._new:
                folder.rmdir()

    def _held_by(self, holder: str) -> str:
        who = f" ({holder})" if holder else ""
        return (
            f"another `penstock up` runs in the folder {self.path}{who}: use that one, or choose another folder and "
            f"port for this one: --data {self.path}-2 --port PORT"
        )

    def _refuse_older_server(self) -> None:
        """Release 0.2 held no lock; its Redis listened on a port."""
        url = self.redis_url.read_text().strip() if self.redis_url.is_file() else ""
        if url.startswith("redis://127.0.0.1:") and _has_its_data_in(url, self.redis):
            raise SettingsError(
                f"an older `penstock up` runs in the folder {self.path} (its Redis: {url}): stop that one first, or "
                f"choose another folder for this one: --data {self.path}-2"
            )


def _has_its_data_in(url: str, folder: Path) -> bool:
    try:
        with brief_client(url) as client:
            found: Any = client.config_get("dir")
    except redis.RedisError:
        return False
    return Path(found.get("dir", "")).resolve() == folder.resolve()
