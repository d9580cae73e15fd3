"""The folder in which numba keeps compiled kernels, so that the next process need not compile them again."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numba

from workers.scheduling.engine_limits import BLOCK_SIZE

HERE = Path(__file__).parent


def keep_compiled() -> bool:
    """Choose the folder for all kernels that are declared from now on: below NUMBA_CACHE_DIR if it can be written, or
    else beside the sources. Returns False if neither can be written: numba then refuses to cache."""
    for folder in _candidates(os.environ.get("NUMBA_CACHE_DIR", "")):
        if _writable(folder):
            numba.config.CACHE_DIR = str(folder)
            return True
    return False


def _candidates(chosen: str) -> Iterator[Path]:
    bases = [Path(chosen), HERE / "__pycache__"] if chosen else [HERE / "__pycache__"]
    for base in bases:
        yield base / f"penstock-{_fingerprint(HERE)}"


def _fingerprint(sources: Path) -> str:
    """Name what the machine code depends on. numba itself compares the source of the one file that declares a kernel,
    and would run a kernel whose helpers have changed since, also those of another release."""
    digest = hashlib.sha256(str(BLOCK_SIZE).encode())
    for path in sorted(sources.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    """Try it, because a mount may be read-only whatever the modes of its folders say."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
