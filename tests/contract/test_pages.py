"""A filtered page is filled to its size, and its cost follows its size."""

from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from api.stores.pages import SCANNED_MAX, Body, PageRequest, page
from shared.domain.errors import InvalidRequest

INDEX = "index"


async def fill(client: Redis, count: int) -> list[str]:
    """Fill a list with ids in the order of their arrival."""
    ids = [f"id-{at:05}" for at in range(count)]
    await client.zadd(INDEX, {each: at for at, each in enumerate(ids)})
    return ids


async def every_hundredth(ids: Sequence[str]) -> list[Body]:
    return [{"id": each} for each in ids if each.endswith("00")]


async def nothing(ids: Sequence[str]) -> list[Body]:
    return []


def asked(after: str | None = None, *, limit: int = 7, newest_first: bool = False) -> PageRequest:
    return PageRequest(after=after, limit=limit, newest_first=newest_first)


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_hold_all_that_is_asked_for_and_none_is_empty(client: Redis, newest_first: bool) -> None:
    ids = await fill(client, 2050)
    pages, after, more = [], None, True

    while more:
        found, more = await page(client, INDEX, asked(after, newest_first=newest_first), every_hundredth)
        pages.append([each["id"] for each in found])
        after = pages[-1][-1]

    wanted = [each for each in ids if each.endswith("00")]
    assert [each for one in pages for each in one] == (wanted[::-1] if newest_first else wanted)
    assert [len(one) for one in pages] == [7, 7, 7]


async def test_a_list_without_what_is_asked_for_is_one_empty_page(client: Redis) -> None:
    await fill(client, 100)

    assert await page(client, INDEX, asked(), nothing) == ([], False)
    assert await page(client, "no index", asked(), nothing) == ([], False)


async def test_a_short_page_of_a_long_list_takes_few_commands(client: Redis) -> None:
    await fill(client, 5000)
    before = (await client.info("stats"))["total_commands_processed"]

    for newest_first in (True, False):
        found, more = await page(client, INDEX, asked("id-02000", limit=1, newest_first=newest_first), every)
        assert (len(found), more) == (1, True)

    assert (await client.info("stats"))["total_commands_processed"] - before <= 5


async def every(ids: Sequence[str]) -> list[Body]:
    return [{"id": each} for each in ids]


async def test_one_request_looks_at_a_bounded_number_and_says_where_to_go_on(client: Redis) -> None:
    ids = await fill(client, 3 * SCANNED_MAX)
    looked: list[str] = []

    async def last_only(some: Sequence[str]) -> list[Body]:
        looked.extend(some)
        return [{"id": each} for each in some if each == ids[-1]]

    places: list[str | None] = [None]
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="continue with 'after'") as refused:
            await page(client, INDEX, asked(places[-1]), last_only)
        assert refused.value.param == "after"
        places.append(str(refused.value).split()[-1].rstrip("."))

    assert await page(client, INDEX, asked(places[-1]), last_only) == ([{"id": ids[-1]}], False)
    assert looked == ids


async def test_a_place_that_is_not_in_the_list_is_refused(client: Redis) -> None:
    await fill(client, 10)

    with pytest.raises(InvalidRequest, match="not in the list"):
        await page(client, INDEX, asked("id-other"), every)


async def test_what_comes_between_two_slices_puts_nothing_on_a_page_twice(client: Redis) -> None:
    ids = await fill(client, 100)

    async def pick_while_others_come(some: Sequence[str]) -> list[Body]:
        await client.zadd(INDEX, {f"new-{some[0]}": 1000})
        return await every(some)

    found, more = await page(client, INDEX, asked(limit=100, newest_first=True), pick_while_others_come)

    assert [each["id"] for each in found] == ids[::-1]
    assert not more
