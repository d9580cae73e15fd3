"""The models file, read again whenever it changes."""

import logging
import os
from pathlib import Path

from shared.domain.errors import SettingsError
from shared.models_file.reading import ModelsFile, read

log = logging.getLogger(__name__)
Seen = tuple[int, int, int]


class FileWatch:
    """`file` is the last one that was right, and `error` says what is wrong with the one that is there now. Raises
    SettingsError for a file that is wrong from the beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _seen(path)
        self.file: ModelsFile = read(path)
        self.error = ""

    def changed(self, *, look: bool = False) -> bool:
        """Read the file if it is another one than before, or if told to `look`. Return true if it says something else,
        and is right."""
        seen = _seen(self._path)
        if seen == self._seen and not look:
            return False
        self._seen = seen
        try:
            file = read(self._path)
        except SettingsError as error:
            self.error = str(error)
            log.error("the models file is wrong; what was read before holds", extra={"error": self.error})
            return False
        self.error, before, self.file = "", self.file.digest, file
        return file.digest != before


def _seen(path: Path) -> Seen | None:
    """Return what tells one content from another, through symbolic links, as a ConfigMap is mounted."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
