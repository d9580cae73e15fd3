"""The models file, read again whenever it changes."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.domain.errors import SettingsError
from shared.models_file.reading import ModelsFile, read

log = logging.getLogger(__name__)
NAMES_SHOWN = 10
Seen = tuple[int, int, int]


class FileWatch:
    """`file` is the last one that was right, and `error` says what is wrong with the one that is there now. `change`
    says in what `file` differs from the one before it. Raises SettingsError for a file that is wrong from the
    beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _seen(path)
        self.file: ModelsFile = read(path)
        self.error = ""
        self.change = ""

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
        was_wrong, before = bool(self.error), self.file
        self.error, self.file = "", file
        if file.digest != before.digest:
            self.change = difference(before, file)
            log.info("the models file was read again", extra={"change": self.change})
            return True
        if was_wrong:
            log.info("the models file is right again, as it was before")
        return False


def difference(before: ModelsFile, after: ModelsFile) -> str:
    """Say which models and routes have come, have gone and are described otherwise, and which other parts changed."""
    parts = [
        *_differences("model", before.models, after.models),
        *_differences("route", before.routes, after.routes),
        *(f"{name} changed" for name in ("default", "host", "root") if getattr(before, name) != getattr(after, name)),
    ]
    return "; ".join(parts) or "nothing but its text"


def _differences(kind: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    both = before.keys() & after.keys()
    names = {
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
        "changed": {name for name in both if before[name] != after[name]},
    }
    for what, found in names.items():
        if found:
            shown = sorted(found)[:NAMES_SHOWN]
            more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
            yield f"{kind}{'s' * (len(found) > 1)} {what}: {', '.join(shown)}{more}"


def _seen(path: Path) -> Seen | None:
    """Return what tells one content from another, through symbolic links, as a ConfigMap is mounted."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
