"""Neighbouring releases read each other's records."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def known_fields(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data without fields that this release's dataclass does not have: a later one has added them."""
    known = {each.name for each in fields(kind)}
    return {name: value for name, value in data.items() if name in known}
