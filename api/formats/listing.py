"""OpenAI's lists: pages of objects, each after an id."""

from collections.abc import Sequence
from typing import Any

from shared.domain.errors import InvalidRequest


def page_of(ids: Sequence[str], *, after: str | None, limit: int) -> tuple[list[str], bool]:
    """Return the ids of a page, and whether there are more. Raises InvalidRequest for an id that is not in the list."""
    begin = 0
    if after is not None:
        if after not in ids:
            raise InvalidRequest(f"'after' names {after}, which is not in the list.", param="after")
        begin = ids.index(after) + 1
    return list(ids[begin : begin + limit]), len(ids) > begin + limit


def listing(data: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}
