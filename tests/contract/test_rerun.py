"""Any kept job may be run again, with changes, and compared with the job that it repeats."""

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from api.formats.chat import ChatFormatter
from api.serving.render_options import decode_render_options, render_options_of
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.comparison import DIFF_LINES_MAX, Written, compare
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.replay import Replayer
from shared.catalog.rerun import RERUN_MAX, Changes, Rerun, Rerunner, Selection
from shared.domain.codec import decode_job
from shared.domain.errors import InvalidRequest, NotFound, QueueFull
from shared.domain.job import Job, Kind, Priority
from shared.domain.lifecycle import State
from shared.queue.event_channel import RedisChannel
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from shared.settings import Settings, load_settings
from tests.contract.conftest import TEN
from tests.contract.test_replay import CHATS
from tests.factories import delta, done, make_job, started, write

FAST = load_settings(queue_jobs_max=3, batch_queue_deadline_s=50_000)


def rerunner(client: Redis, settings: Settings = FAST) -> Rerunner:
    queue, records = RedisQueue(client, keep_requests=True), JobRecords(client)
    return Rerunner(queue, records, Replayer(queue, records, ModelRegistry(client), ApiKeyStore(client)), settings)


async def answered(client: Redis, job: Job, text: str, *, keep_requests: bool = True) -> Job:
    queue = RedisQueue(client, keep_requests=keep_requests)
    options = render_options_of(job, ChatFormatter(n=1, include_usage=False, logprobs=False))
    await queue.enqueue(job, bounds=TEN, render_options=options.encode())
    await answer(client, job.model, text)
    return job


async def answer(client: Redis, model: str, text: str) -> Job:
    queue = RedisQueue(client)
    (delivery,) = await queue.claim(model, worker="w", limit=1)
    await queue.settle(write(delivery, started(), delta(1, text), done(2)), worker="w")
    return delivery.job


async def all_of(reruns: Any) -> list[Rerun]:
    return [each async for each in reruns]


async def test_a_finished_job_runs_again_with_changes_and_stays_as_it_is(client: Redis) -> None:
    job = await answered(client, make_job(), "one")
    await ModelRegistry(client).announce(CHATS)
    before: Any = await client.hgetall(f"rq:job:{job.id}")

    changes = Changes(model="other", priority=Priority.BATCH, sampling={"temperature": 0.5, "seed": 9})
    rerun = await rerunner(client).rerun(job.id, changes)
    ran = await answer(client, "other", "two")

    assert await client.hgetall(f"rq:job:{job.id}") == before
    expected = replace(job.sampling, temperature=0.5, seed=9, seeded=True)
    assert (ran.id, ran.model, ran.sampling, ran.request) == (rerun.job_id, "other", expected, job.request)
    assert (ran.priority, ran.queue_deadline_ms, ran.grace_ms) == (Priority.BATCH, 50_000_000, None)
    record = await JobRecords(client).record(rerun.job_id)
    assert (record.replay_of, record.tenant, record.state) == (job.id, job.tenant, State.FINISHED)
    assert decode_render_options(record.view).queue_deadline_ms == 50_000_000
    assert decode_job(record.payload.encode()) == ran, "a rerun can be run again, too"


async def test_many_jobs_run_again_as_batch_and_one_that_cannot_holds_up_no_other(client: Redis) -> None:
    kept = await answered(client, make_job(), "one")
    gone = await answered(client, make_job(), "one", keep_requests=False)
    vectors = await answered(client, replace(make_job(), kind=Kind.EMBEDDING, request={"inputs": ["a"]}), "")

    changes = Changes(sampling={"temperature": 1.0})
    ids = [gone.id, "nosuch", vectors.id, kept.id]
    found = await all_of(rerunner(client).rerun_all(ids, changes))

    assert [bool(each.job_id) for each in found] == [False, False, False, True]
    assert "PENSTOCK_KEEP_REQUESTS" in found[0].refusal
    assert "There is no job nosuch" in found[1].refusal
    assert "'temperature' must not be changed" in found[2].refusal
    (delivery,) = await RedisQueue(client).claim(kept.model, worker="w", limit=5)
    assert (delivery.job.id, delivery.job.priority) == (found[3].job_id, Priority.BATCH)


async def test_a_rerun_keeps_within_the_queues_bounds_and_names_what_it_lacks(client: Redis) -> None:
    job = await answered(client, make_job(), "one")
    reruns = rerunner(client)
    ids = [(await reruns.rerun(job.id, Changes())).job_id for _ in range(3)]

    with pytest.raises(QueueFull):
        await reruns.rerun(job.id, Changes())
    with pytest.raises(NotFound, match="gone"):
        await reruns.rerun(job.id, Changes(model="gone"))
    with pytest.raises(InvalidRequest, match=str(RERUN_MAX)):
        await all_of(reruns.rerun_all([job.id] * (RERUN_MAX + 1), Changes()))
    assert await JobRecords(client).ids(job.model, State.QUEUED) == ids


async def test_jobs_are_selected_by_state_age_and_tenant(client: Redis) -> None:
    mine = await answered(client, replace(make_job(), tenant="me"), "one")
    await answered(client, replace(make_job(), tenant="you"), "one")
    everything = Selection(model="*", state=State.FINISHED)

    reruns = rerunner(client)
    assert len(await reruns.find(everything)) == 2
    assert await reruns.find(replace(everything, tenant="me", since_s=60)) == [mine.id]
    assert await reruns.find(replace(everything, state=State.FAILED)) == []
    assert await reruns.find(replace(everything, tenant="me", limit=1)) == [mine.id], "the newest is another tenant's"


async def test_the_newest_jobs_are_selected_whatever_their_models(client: Redis) -> None:
    jobs = [await answered(client, make_job(model), "one") for model in ("a", "b")]
    for number, job in enumerate(jobs):
        await client.hset(keys.job(job.id), "ended_at", f"2026-01-0{number + 1}T00:00:00Z")

    found = await rerunner(client).find(Selection(model="*", state=State.FINISHED, limit=1))

    assert found == [jobs[1].id]


async def test_a_rerun_of_a_dated_job_may_wait_as_long_as_others(client: Redis) -> None:
    job = await answered(client, replace(make_job(queue_deadline_ms=900), due_ms=10**14), "one")

    await rerunner(client).rerun(job.id, Changes())
    ran = await answer(client, job.model, "two")

    assert (ran.due_ms, ran.queue_deadline_ms) == (0, int(FAST.queue_deadline(job.priority) * 1000))


async def test_two_jobs_are_compared_by_text_tokens_and_ends(client: Redis) -> None:
    job = await answered(client, make_job(), "alike\nbefore")
    rerun = await rerunner(client).rerun(job.id, Changes())
    await answer(client, job.model, "alike\nafter")
    ids = [job.id, rerun.job_id]
    pages = await RedisChannel(client).read([(each, 0) for each in ids])
    one, two = [
        Written(record=await JobRecords(client).record(each), events=page.events)
        for each, page in zip(ids, pages, strict=True)
    ]

    found = compare(one, two)

    assert not found["same"]
    assert found["diff"][-3:] == [" alike", "-before", "+after"]
    assert [each["job"] for each in found["jobs"]] == ids
    assert all(each["outcome"] == "completed" and each["took_s"] >= 0 for each in found["jobs"])
    assert compare(one, one)["same"]
    assert compare(one, one)["diff"] == []


async def test_a_comparison_is_cut_off_and_says_so(client: Redis) -> None:
    job = await answered(client, make_job(), "one")
    record = await JobRecords(client).record(job.id)

    def of_lines(count: int, *, choices: int = 1) -> Written:
        text = "x\n" * (count - 1) + "x"
        return Written(record=record, events=[replace(delta(1, text), choice=choice) for choice in range(choices)])

    whole, longer = of_lines(DIFF_LINES_MAX), of_lines(DIFF_LINES_MAX + 1)
    wide = of_lines(DIFF_LINES_MAX // 2, choices=8)

    assert not compare(whole, whole)["truncated"]
    assert compare(whole, longer)["truncated"]
    assert compare(wide, wide)["truncated"], "the bound is for all choices together"
