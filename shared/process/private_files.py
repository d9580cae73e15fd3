"""Files and folders that no other user of the machine may read, and lock files."""

import fcntl
import os
import stat
from pathlib import Path

from shared.domain.errors import SettingsError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
UMASK = 0o077


def private_folder(folder: Path, *, option: str) -> Path:
    """Create the folder, or close an existing one to other users. Raises SettingsError naming `option`."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
    except OSError as error:
        raise SettingsError(f"{option}: the folder {folder} cannot be created ({error.strerror})") from error
    return folder


def own_folder(folder: Path, *, option: str) -> Path:
    """Create a folder below one that every user of the machine can write to, or take it if this user created it before.
    Anything else of that name is neither changed nor followed. Raises SettingsError naming `option`."""
    try:
        os.mkdir(folder, FOLDER_MODE)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & UMASK:
            raise SettingsError(
                f"{option}: {folder} is not a folder of this user alone; remove it, or set {option} to another folder"
            ) from None
    except OSError as error:
        raise SettingsError(f"{option}: the folder {folder} cannot be created ({error.strerror})") from error
    return folder


def private_file(path: Path) -> Path:
    """Create the file empty if it does not exist, and close it to other users."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, FILE_MODE))
    path.chmod(FILE_MODE)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the whole file at once, so that no reader sees half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    private_file(new).write_text(text)
    new.replace(path)


class LockFile:
    """A file that one process holds, with a note about the holder in it. The kernel releases it when the last process
    that has it open ends, after kill -9 as well."""

    def __init__(self, path: Path) -> None:
        self._file = private_file(path).open("r+")

    def take(self) -> bool:
        """Try to lock the file and clear its note. Return False if another process holds it, or if the file was removed
        after it was opened: the next process would lock a new file of the same name."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.fstat(self._file.fileno()).st_nlink == 0:
            return False
        self.note("")
        return True

    def note(self, holder: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(holder)
        self._file.flush()

    def holder(self) -> str:
        self._file.seek(0)
        return self._file.read().strip()

    def fileno(self) -> int:
        """A child that inherits this descriptor holds the file as well."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
