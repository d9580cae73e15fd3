"""A waiting job knows what is served before it."""

from redis.asyncio import Redis

from shared.catalog.job_records import JobRecords
from shared.catalog.places import Place, PlaceReader
from shared.domain.job import Job, Priority
from shared.domain.lifecycle import State
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import done, make_job, started, write

MANY = Bounds(jobs_max=5000)


async def queued(client: Redis, *jobs: Job) -> None:
    for job in jobs:
        await RedisQueue(client).enqueue(job, bounds=MANY)


async def test_places_count_turns_of_tenants_and_classes_above(client: Redis) -> None:
    flood = [make_job(tenant="flood", max_tokens=10) for _ in range(5)]
    mine = [make_job(tenant="me", max_tokens=10) for _ in range(2)]
    urgent = make_job(tenant="flood", priority=Priority.INTERACTIVE, max_tokens=10)
    await queued(client, *flood, *mine, urgent)

    places = await PlaceReader(client).read([job.id for job in [urgent, *mine, *flood]])

    assert [places[job.id].ahead for job in [urgent, *mine]] == [0, 2, 4], "the flood is before me by its name"
    assert [places[job.id].ahead for job in flood] == [1, 3, 5, 6, 7]
    assert 0 == places[urgent.id].tokens_ahead < places[mine[0].id].tokens_ahead < places[mine[1].id].tokens_ahead


async def test_places_move_up_as_jobs_are_claimed_and_only_queued_jobs_have_one(client: Redis) -> None:
    first, second = make_job(), make_job()
    await queued(client, first, second)
    reader, queue = PlaceReader(client), RedisQueue(client)
    before = await reader.read([second.id])
    (delivery,) = await queue.claim("m", worker="w", limit=1)

    after = await reader.read([first.id, second.id, "nobody"])
    await queue.settle(write(delivery, started(), done(1)), worker="w")
    (last,) = (await reader.read([second.id])).values()

    assert before[second.id].ahead == 1
    assert after == {first.id: Place(state=State.STARTED), second.id: Place(state=State.QUEUED)}
    assert last.wait_s == 0, "nothing is before it"


async def test_an_accepted_job_tells_the_tokens_before_it(client: Redis) -> None:
    queue = RedisQueue(client)
    job = make_job(max_tokens=100)
    await queue.enqueue(job, bounds=MANY)

    accepted = await queue.enqueue(make_job(), bounds=MANY)

    assert accepted.ahead == 1
    assert accepted.tokens_ahead == int(await client.hget(f"rq:job:{job.id}", "cost"))  # type: ignore[arg-type]


async def test_a_state_that_another_tool_has_set_is_no_place(client: Redis) -> None:
    job = make_job()
    await queued(client, job)
    await client.hset(keys.job(job.id), "status", "stopped")

    assert await PlaceReader(client).read([job.id]) == {job.id: Place(state=State.FAILED)}
    assert (await JobRecords(client).record(job.id)).state is State.FAILED
