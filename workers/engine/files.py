"""Single files of a model: in its folder, or from its hub."""

from typing import Any

from transformers.utils import cached_file


def found_file(source: str, name: str, **where: Any) -> str | None:
    """Its path on this machine, fetched if need be; None where there is none. `where`: revision and token."""
    found: str | None = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return found
