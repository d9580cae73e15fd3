"""Each Lua script, on every kind of Redis, loads alone, takes arguments by name, and writes the documented fields."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
from redis.asyncio import Redis

from shared.domain.events import Failed
from shared.queue import lua
from shared.queue.protocols import Bounds, Idempotency, Quota, RateLimits, Room
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import delta, done, make_job, started, write
from tests.lua_source import job_fields

ECHO = """
-- verb: echo
-- takes: text, number count, list words, list rows (id, number at, list events)
local function echo(args)
  local rows = {}
  for row in args.rows do rows[#rows + 1] = cjson.encode(row) end
  args.rows = rows
  return cjson.encode(args)
end
"""


async def test_each_verb_loads_alone(client: Redis) -> None:
    loaded: list[Any] = [await client.script_load(verb.script) for verb in lua.verbs().values()]

    assert len(set(loaded)) == len(lua.verbs()) >= 12


async def test_a_verb_gets_its_arguments_by_name(client: Redis) -> None:
    echo = lua.linked(lua.parts("echo.lua", ECHO))["echo"]
    rows = [{"id": "7", "at": 7, "events": ["x" * 9, "{}"]}, {"id": "", "at": -1.5, "events": ["y"]}]
    arguments = {"words": ["a", "", "b"], "text": "12", "rows": rows, "count": 10**9}

    answer: Any = await client.register_script(echo.script)(args=echo.arguments(arguments))

    got = orjson.loads(answer)
    assert got | {"rows": [orjson.loads(row) for row in got["rows"]]} == arguments


async def test_a_list_may_be_empty_or_longer_than_luas_stack(client: Redis) -> None:
    echo = lua.linked(lua.parts("echo.lua", ECHO.replace("cjson.encode(args)", "{ #args.words, #args.rows }")))["echo"]

    answer: Any = await client.register_script(echo.script)(
        args=echo.arguments({"text": "", "count": 0, "words": ["w"] * 20_000, "rows": []})
    )

    assert answer == [20_000, 0]


async def test_a_job_has_every_field_of_the_table_in_its_life_and_no_other(client: Redis) -> None:
    queue = RedisQueue(client, lease_ms=1, attempts_max=2, keep_requests=True)
    job = replace(make_job(n=2, tenant="t", run_deadline_ms=60_000), notify=True, keep_s=5000, due_ms=10**14)
    job = replace(job, not_before_ms=1)
    seen = set[str]()

    async def look(job_id: str = job.id) -> set[str]:
        found: Any = await client.hkeys(keys.job(job_id))
        seen.update(name.decode() for name in found)
        return {name.decode() for name in found}

    await queue.enqueue(
        job,
        bounds=Bounds(jobs_max=10),
        subscriber="api",
        idempotency=Idempotency(key="k", fingerprint="f"),
        rate_limits=RateLimits(requests=5, month="2026-11"),
        render_options="{}",
        trace="00-1-1-00",
    )
    assert "exec" not in await look()
    await queue.claim("m", worker="a", limit=1)
    await look()
    await asyncio.sleep(0.01)  # the lease is counted by the server's own clock
    (delivery,) = await queue.claim("m", worker="b", limit=1, room=Room(9, quotas=(Quota(name="u", at_once=1),)))
    assert {"alone", "quota"} <= await look()
    await queue.append([write(delivery, started(), delta(1))])
    assert "alone" not in await look()
    await queue.settle(write(delivery, done(2, Failed(code="engine_error", message="m"))), worker="b")
    assert await look() & {"sid", "exec", "moved", "quota"} == set()
    await queue.replay(job.id, as_id="again")
    await look()
    await look("again")

    assert seen == job_fields().keys()
