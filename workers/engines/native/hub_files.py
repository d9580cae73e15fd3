"""The files of a model lie in a folder, or on a hub, from which they are fetched."""

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from shared.domain.errors import SettingsError
from shared.settings import Settings

FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]  # when a whole repository is fetched


def located(source: str, settings: Settings, *, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """The source for transformers, and its keyword arguments. ModelScope, which transformers does not know, is fetched
    whole. Tokens are the libraries' own variables, HF_TOKEN and MODELSCOPE_API_TOKEN."""
    revision = settings.revision if revision is None else revision
    if settings.hub != "modelscope" or Path(source).is_dir():
        return source, {"revision": revision or None}
    try:
        from modelscope_hub.compat import snapshot_download
    except ImportError as error:
        raise SettingsError("PENSTOCK_HUB: modelscope needs `pip install modelscope-hub`") from error
    try:
        folder: str = snapshot_download(source, revision=revision or None, allow_patterns=FETCHED)
    except Exception as error:  # the library's errors have no common base class
        raise SettingsError(f"MODEL: {source} cannot be fetched from ModelScope: {error}") from error
    return folder, {}


def found_file(source: str, name: str, **where: Any) -> str | None:
    """A file's path on this machine, fetched if need be; None if there is no such file. `where`: as from `located`."""
    found: str | None = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return found
