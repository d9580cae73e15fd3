"""A failed job may be run once more by another model, if that one can serve it."""

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from api.formats.chat import ChatFormatter
from api.serving.render_options import decode_render_options, render_options_of
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.replay import Replayed, Replayer
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.events import Failed
from shared.domain.job import Grammar, GrammarKind, Job, Kind, ModelInfo
from shared.domain.lifecycle import State
from shared.domain.suitability import require_suited
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.contract.conftest import TEN
from tests.factories import done, make_job, started, write

CHATS = ModelInfo(
    name="other",
    engine="custom",
    context_length=100,
    created_s=0,
    capabilities=("chat", "completions"),
    prompt_chars_max=50,
)
SCHEMA = Grammar(kind=GrammarKind.JSON_SCHEMA, text="{}", param="response_format")


def chat(**request: Any) -> Job:
    job = make_job()
    return replace(job, request=job.request | request)


def vectors(**request: Any) -> Job:
    about = {"inputs": ["a"], "dimensions": None, "truncate": None, **request}
    return replace(make_job(), kind=Kind.EMBEDDING, request=about)


async def fail(queue: RedisQueue, job: Job) -> Job:
    options = render_options_of(job, ChatFormatter(n=1, include_usage=False, logprobs=False))
    await queue.enqueue(job, bounds=TEN, render_options=options.encode())
    (delivery,) = await queue.claim(job.model, worker="w", limit=1)
    await queue.settle(write(delivery, started(), done(1, Failed(code="engine_error", message="no"))), worker="w")
    return job


async def replayed(client: Redis, job: Job, to_model: str) -> Replayed:
    replayer = Replayer(RedisQueue(client), JobRecords(client), ModelRegistry(client), ApiKeyStore(client))
    to = await replayer.target(to_model)
    (found,) = [each async for each in replayer.replay([job.id], rate_per_s=0, to=to)]
    return found


async def test_a_replay_goes_to_another_model_and_is_that_models_job_alone(client: Redis) -> None:
    queue, records = RedisQueue(client), JobRecords(client)
    await ModelRegistry(client).announce(CHATS)
    job = await fail(queue, make_job(tenant="t", seed=7))

    found = await replayed(client, job, "other")
    again = await replayed(client, job, "other")

    assert (found.before, found.refusal) == (State.FAILED, "")
    assert again.job_id == found.job_id
    assert await queue.depth("m") == 0
    (delivery,) = await queue.claim("other", worker="w", limit=5)
    assert (delivery.job.id, delivery.job.model) == (found.job_id, "other")
    assert (delivery.job.request, delivery.job.sampling, delivery.job.tenant) == (job.request, job.sampling, "t")
    record = await records.record(found.job_id)
    assert (record.model, record.replay_of) == ("other", job.id)
    assert decode_render_options(record.view).job(record.id, model=record.model).model == "other"
    assert await client.zscore(keys.registry(State.FAILED, "m"), job.id) is None


async def test_a_job_that_the_other_model_cannot_serve_stays_failed(client: Redis) -> None:
    await ModelRegistry(client).announce(CHATS)
    job = await fail(RedisQueue(client), chat(tools=[{"type": "function"}]))

    found = await replayed(client, job, "other")

    assert found.job_id == ""
    assert found.refusal == "The model 'other' lacks the capability 'tools'; it has: chat, completions."
    assert (await JobRecords(client).record(job.id)).replayed_as == ""
    assert await client.zscore(keys.registry(State.FAILED, "m"), job.id) is not None
    assert (await replayed(client, job, "")).job_id


async def test_a_key_that_may_not_use_the_other_model_keeps_its_job(client: Redis) -> None:
    await ModelRegistry(client).announce(CHATS)
    key, _ = await ApiKeyStore(client).create("limited", models=("m",))
    job = await fail(RedisQueue(client), make_job(tenant=key.id))

    assert (await replayed(client, job, "other")).refusal == f"The key {key.id} may not use the model 'other'."

    await ApiKeyStore(client).change(key.id, models=("m", "other"))
    assert (await replayed(client, job, "other")).job_id


async def test_a_replay_to_an_unknown_model_names_its_parameter(client: Redis) -> None:
    job = await fail(RedisQueue(client), make_job())

    with pytest.raises(NotFound, match="'nosuch' does not exist") as refused:
        await replayed(client, job, "nosuch")

    assert (refused.value.code, refused.value.param) == ("model_not_found", "to_model")


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (vectors(), "'embeddings'"),
        (vectors(rank=True), "'rerank'"),
        (make_job(grammar=SCHEMA), "'structured_outputs'"),
        (chat(extra={"top_a": 1}), "'extra_parameters'"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "'image_url'"),
        (make_job(prompt="x" * 51), "maximum context length is 100"),
        (make_job(completion={"prompts": [[1] * 101]}), "maximum context length is 100"),
    ],
)
def test_what_a_model_lacks_is_named(job: Job, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        require_suited(job, CHATS)


TEXTS = replace(CHATS, prompt_chars_max=0)  # a model that answers in text, and tells no tokens
NEED_TOKENS: list[tuple[Job, str]] = [
    (make_job(logprobs=0), "logprobs"),
    (make_job(logit_bias=((5, 1.0),)), "logit_bias"),
    (make_job(min_tokens=1), "min_tokens"),
    (make_job(ignore_eos=True), "ignore_eos"),
    (make_job(stop_token_ids=(5,)), "stop_token_ids"),
    (make_job(completion={"prompts": ["a", [1]]}), "prompt"),
    (make_job(completion={"prompts": ["a"], "prompt_logprobs": 0}), "logprobs"),
]


@pytest.mark.parametrize(("job", "param"), NEED_TOKENS)
def test_what_needs_tokens_goes_to_no_model_of_text(job: Job, param: str) -> None:
    require_suited(job, CHATS)

    with pytest.raises(InvalidRequest) as refused:
        require_suited(job, TEXTS)

    assert refused.value.param == param


@pytest.mark.parametrize("job", [job for job, _ in NEED_TOKENS[:6]])
def test_a_model_of_text_that_has_the_ability_gets_it(job: Job) -> None:
    able = ("logprobs", "logit_bias", "min_tokens", "ignore_eos", "stop_token_ids", "token_ids")

    require_suited(job, replace(TEXTS, capabilities=(*TEXTS.capabilities, *able)))


def test_the_tokens_of_one_model_are_not_asked_of_another() -> None:
    tokens = replace(make_job(), kind=Kind.TOKENS, request={"prompt": "a"})

    with pytest.raises(InvalidRequest, match="those of one model"):
        require_suited(tokens, CHATS)
