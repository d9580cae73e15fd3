"""Files and folders that no other user of the machine may read, and files that one process at a time holds."""

import fcntl
import os
import stat
from pathlib import Path

from shared.domain.errors import SettingsError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
UMASK = 0o077


def private_folder(folder: Path, *, option: str) -> Path:
    """Make the folder, or close it to others if it is there. Raises SettingsError naming `option`."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
    except OSError as error:
        raise SettingsError(f"{option}: the folder {folder} cannot be made ({error.strerror})") from error
    return folder


def own_folder(folder: Path, *, option: str) -> Path:
    """Make the folder where every user of the machine may put things, or take it if this user made it before. Nothing
    that is found there is changed or followed. Raises SettingsError naming `option`."""
    try:
        os.mkdir(folder, FOLDER_MODE)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & UMASK:
            raise SettingsError(
                f"{option}: {folder} is not a folder of this user alone; remove it, or set {option} to a folder that is"
            ) from None
    except OSError as error:
        raise SettingsError(f"{option}: the folder {folder} cannot be made ({error.strerror})") from error
    return folder


def private_file(path: Path) -> Path:
    """The file, which is made empty if it is not there, closed to others."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, FILE_MODE))
    path.chmod(FILE_MODE)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, so that no reader meets half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    private_file(new).write_text(text)
    new.replace(path)


class LockFile:
    """A file that one process holds, with a word about the holder in it. The kernel releases it when the last process
    that has it open ends, by kill -9 too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = private_file(path).open("r+")

    def take(self) -> bool:
        """Whether it is ours now. Whoever takes it has nothing noted yet."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.note("")
        return True

    def note(self, holder: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(holder)
        self._file.flush()

    def holder(self) -> str:
        return self._path.read_text().strip()

    def fileno(self) -> int:
        """A child that inherits this descriptor holds the file as well."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
