"""The files of models are kept on this machine: fetched from a hub into its library's cache, or copied from a
folder."""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shared.domain.errors import InvalidRequest, NotFound

FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CHUNK = 16 * 2**20
SPARE = 1.05  # of the room that a model's files need
Progress = Callable[[int, int], None]  # bytes that are there, and bytes in all


def fetch(source: str, hub: str, *, revision: str, include: Sequence[str], to: Path | None, progress: Progress) -> Path:
    """Fetch a model's files from the hub, go on where an earlier attempt broke off, and return their folder. Raises
    InvalidRequest, which says what the hub answered."""
    require_hub_id(source)
    fetching = _from_modelscope if hub == "modelscope" else _from_hugging_face
    options = {"revision": revision or None, "allow_patterns": list(include or FETCHED), "local_dir": to and str(to)}
    try:
        return Path(fetching(source, options, progress))
    except OSError as error:  # of the network or the disk, and the base of most of Hugging Face's errors
        raise InvalidRequest(f"{source} cannot be fetched: {error}") from error


def _from_hugging_face(source: str, options: dict[str, Any], progress: Progress) -> str:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from tqdm import tqdm
    except ImportError as error:
        raise InvalidRequest("fetching needs huggingface_hub: pip install 'penstock[torch]'") from error

    class Counted(tqdm):  # type: ignore[misc]
        """A bar that is not drawn: it counts the bytes of all files."""

        def __init__(self, *arguments: Any, **about: Any) -> None:
            about.pop("name", None)
            super().__init__(*arguments, **(about | {"disable": True}))
            self.bytes, self.in_bytes = 0, about.get("unit") == "B"

        def update(self, n: float | None = 1) -> bool | None:
            if self.in_bytes:
                with lock:  # each file has a thread
                    self.bytes += int(n or 0)
                    progress(min(self.bytes, total), total)
            return None

    try:
        missing = [file for file in snapshot_download(source, dry_run=True, **options) if file.will_download]
        total, lock = sum(file.file_size for file in missing), threading.Lock()
        _require_room(Path(options["local_dir"] or _hugging_face_cache()), total)
        return str(snapshot_download(source, tqdm_class=Counted, **options))
    except (HfHubHTTPError, HFValidationError) as error:
        raise InvalidRequest(f"{source} cannot be fetched: {error}") from error


def _from_modelscope(source: str, options: dict[str, Any], progress: Progress) -> str:
    try:
        os.environ.setdefault("TQDM_DISABLE", "1")  # it draws a bar of its own
        from modelscope_hub import HubApi, ProgressCallback, errors
        from modelscope_hub.compat import snapshot_download
    except ImportError as error:
        raise InvalidRequest("PENSTOCK_HUB: modelscope needs `pip install modelscope-hub`") from error
    total, done, lock = 0, 0, threading.Lock()

    class Counted(ProgressCallback):  # type: ignore[misc]
        def update(self, size: int) -> None:
            nonlocal done
            with lock:  # each file has a thread
                done += size
                progress(min(done, total), total)

    try:
        files = HubApi().list_repo_files(source, "model", revision=options["revision"])
        patterns = options["allow_patterns"]
        total = sum(file.size for file in files if any(fnmatch(file.path, pattern) for pattern in patterns))
        _require_room(Path(options["local_dir"] or _modelscope_cache()), total)
        folder = str(snapshot_download(source, progress_callbacks=[Counted], **options))
        progress(total, total)
        return folder
    except errors.HubError as error:
        raise InvalidRequest(f"{source} cannot be fetched: {error}") from error


def copy(source: Path, to: Path, *, progress: Progress) -> Path:
    """Copy a model's folder or file. The copy has its name only once it is whole."""
    if to.exists():
        raise InvalidRequest(f"{to} exists already.")
    if not source.is_file() and not any(source.glob("*.json")) and not any(source.glob("*.gguf")):
        raise InvalidRequest(f"{source} holds no model: no config.json and no .gguf file.")
    files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
    total, done = sum(path.stat().st_size for path in files), 0
    to.parent.mkdir(parents=True, exist_ok=True)
    _require_room(to.parent, total)
    partial = to.with_name(f"{to.name}.partial")
    _remove(partial)
    try:
        for path in files:
            copied = partial if source.is_file() else partial / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            for size in _copied(path, copied):
                done += size
                progress(done, total)
        partial.rename(to)
    finally:
        _remove(partial)
    return to


def _copied(path: Path, to: Path) -> Iterator[int]:
    with path.open("rb") as reading, to.open("wb") as writing:
        while chunk := reading.read(CHUNK):
            writing.write(chunk)
            yield len(chunk)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def cached(source: str, hub: str) -> tuple[Path, int]:
    """Return the folder of a fetched model in its hub's cache, and its bytes on the disk. Raises InvalidRequest for
    what is no hub id, and NotFound."""
    require_hub_id(source)
    owner, name = source.split("/")
    root = _modelscope_cache() if hub == "modelscope" else _hugging_face_cache()
    places = [root / "models" / f"{owner}--{name}", root / source, root / "hub" / source]
    places = places if hub == "modelscope" else [root / f"models--{owner}--{name}"]
    for folder in places:
        if folder.is_dir() and not folder.is_symlink():
            files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
            return folder, sum(path.stat().st_size for path in files)
    raise NotFound(f"{source} was not fetched: there is nothing of it in {root}.")


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def require_hub_id(source: str) -> None:
    """Raise InvalidRequest for anything but OWNER/NAME, such as a path."""
    if not HUB_ID.fullmatch(source) or ".." in source or Path(source).expanduser().exists():
        raise InvalidRequest(f"{source} is not the id of a model on a hub, like Qwen/Qwen2.5-0.5B-Instruct.")


def used_by_process(source: str, folder: Path) -> int:
    """Return the id of a process of this machine that has a file of the folder in its memory, or the model's id in its
    command line; 0 if there is none, or where there is no /proc."""
    own, place = str(Path("/proc/self").resolve().name), str(folder.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == own:
            continue
        try:
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            if "worker" in words and any(source in re.split("[=,]", word) for word in words):
                return int(process.name)
            if f"{place}/" in (process / "maps").read_text(errors="replace"):
                return int(process.name)
        except OSError:  # it has ended, or is another user's
            continue
    return 0


def _hugging_face_cache() -> Path:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as error:
        raise InvalidRequest("this needs huggingface_hub: pip install 'penstock[torch]'") from error
    return Path(HF_HUB_CACHE)


def _modelscope_cache() -> Path:
    try:
        from modelscope_hub.config import get_default_config
    except ImportError as error:
        raise InvalidRequest("PENSTOCK_HUB: modelscope needs `pip install modelscope-hub`") from error
    return Path(get_default_config().cache_dir)


def _require_room(folder: Path, size: int) -> None:
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size * SPARE > free:
        raise InvalidRequest(f"{size / 2**30:.1f} GiB are needed, and {there} has {free / 2**30:.1f} GiB free.")
