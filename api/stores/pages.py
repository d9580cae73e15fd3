"""Pages of a list that Redis keeps as a sorted set of ids. A page is filtered while it is filled, so it is empty only
at the end of the list, and its cost depends on its own length, not on the list's."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import InvalidRequest
from shared.redis.client import translated

SLICE_MAX = 32  # ids that are read together, since their records may be large
SCANNED_MAX = 10_000  # ids that one request reads
Body = dict[str, Any]
Pick = Callable[[Sequence[str]], Awaitable[list[Body]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """The page that a client requests: `limit` objects behind the id `after`."""

    after: str | None
    limit: int
    newest_first: bool


async def page(client: Redis, index: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
    """Return the bodies of a page, and whether there are more. `pick` returns the bodies of those of the ids that
    belong to the list, in their order. Ids that are added at the head meanwhile move the rest, so some ids are read
    again; each counts once. Raises InvalidRequest, which names `after`."""
    begin = 0 if asked.after is None else await _place(client, index, asked) + 1
    found: list[Body] = []
    seen = set[str]()
    scanned, wanted, last = 0, asked.limit + 1, asked.after
    while len(found) < wanted and scanned < SCANNED_MAX:
        ids = await _slice(client, index, asked, begin + scanned, min(wanted + scanned, SLICE_MAX))
        if not ids:
            return found, False
        if new := [each for each in ids if each not in seen]:
            found += await pick(new)
        seen.update(new)
        scanned, last = scanned + len(ids), ids[-1]
    if not found:
        raise InvalidRequest(f"None of {scanned} entries matches: continue with 'after' {last}.", param="after")
    return found[: asked.limit], True


async def _place(client: Redis, index: str, asked: PageRequest) -> int:
    assert asked.after is not None
    rank_of: Any = client.zrevrank if asked.newest_first else client.zrank
    with translated():
        rank = await rank_of(index, asked.after)
    if rank is None:
        raise InvalidRequest(f"'after' names {asked.after}, which is not in the list.", param="after")
    return int(rank)


async def _slice(client: Redis, index: str, asked: PageRequest, begin: int, count: int) -> list[str]:
    with translated():
        found: Any = await client.zrange(index, begin, begin + count - 1, desc=asked.newest_first)
    return [member.decode() for member in found]
