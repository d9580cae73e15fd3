"""The parameters that a person sets for the requests of `penstock chat` and `penstock ask`. Pure."""

import json
from collections.abc import Sequence
from typing import Any

from shared.domain.errors import InvalidRequest

OURS = ("model", "messages", "stream")  # of each request, chosen otherwise


class Parameters:
    """Any fields of a chat request, which the server judges."""

    def __init__(self, assignments: Sequence[str] = ()) -> None:
        """`assignments`: NAME=VALUE. Raises InvalidRequest for any other text."""
        self.values: dict[str, Any] = {}
        for each in assignments:
            name, equals, value = each.partition("=")
            if not equals:
                raise InvalidRequest(f"--set: {each!r} is not NAME=VALUE, such as temperature=0.7")
            self.set(name.strip(), value.strip())

    def set(self, name: str, value: str) -> None:
        """Set a field to a value in JSON, or to a text that is none; an empty one removes the field. Raises
        InvalidRequest for a name that is none, or not to be set."""
        if not name.isidentifier() or name in OURS:
            raise InvalidRequest(f"{name!r} is not a parameter that can be set")
        if value:
            self.values[name] = _parsed(value)
        else:
            self.values.pop(name, None)

    def __str__(self) -> str:
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in self.values.items()) or "(none)"


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
