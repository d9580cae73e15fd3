"""Names in requests lead to models: aliases, routes, the default, and unknown names, with a real Redis."""

import math
from typing import Any

import pytest
from redis.asyncio import Redis

from api.http.auth import Caller
from api.http.request_options import RequestOptions
from api.serving.admission import Admission
from api.serving.model_router import ROUTES_FOR_S, ModelRouter
from shared.catalog.api_keys import ApiKey
from shared.catalog.hosting import Hosting
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.domain.errors import ContextLengthExceeded, Forbidden, InvalidRequest, NotFound
from shared.domain.hosting import Host, HostedModel, HostedState
from shared.domain.job import Job, Kind, ModelInfo, Priority
from shared.domain.routing import Route
from shared.queue.protocols import Bounds, Idempotency
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from shared.settings import load_settings
from tests.factories import make_job, model_router

ANYBODY = Caller("t")
BOUNDS = Bounds(jobs_max=100)


@pytest.fixture
async def router(client: Redis) -> ModelRouter:
    """Return a router of the models `big`, `small` and `qwen`; nobody serves any of them."""
    for name, context in (("big", 1000), ("small", 10), ("qwen", 1000)):
        await announce(client, name, context_length=context, prompt_chars_max=10 * context)
    routes = {
        "coder": Route(order=("big", "qwen"), spill_after_s=30),
        "gpt-4o": Route(order=("qwen",)),
        "short": Route(order=("small", "big")),
        "stable": Route(order=("big", "qwen")),
    }
    await RouteTable(client).write(routes, "gpt-4o")
    return model_router(client)


async def announce(client: Redis, name: str, **about: Any) -> None:
    usual: dict[str, Any] = {
        "engine": "scripted",
        "context_length": 9,
        "created_s": 0,
        "capabilities": ("chat", "completions"),
    }
    await ModelRegistry(client).announce(ModelInfo(name=name, **(usual | about)))


async def serve(client: Redis, model: str) -> None:
    """Make the model warm: one worker is known to serve it."""
    await client.hset(keys.worker(f"of-{model}"), "state", "idle")
    await client.sadd(keys.workers_of(model), keys.worker(f"of-{model}"))


async def fill(client: Redis, model: str, jobs: int, **about: Any) -> None:
    """Let jobs wait whose tokens take a worker of 500 tokens a second 20 s each."""
    for _ in range(jobs):
        await RedisQueue(client).enqueue(make_job(model, prompt="x" * 39_000, **about), bounds=BOUNDS)


async def names(router: ModelRouter, name: str, caller: Caller = ANYBODY, **options: Any) -> list[str]:
    asked = {"priority": Priority.STANDARD} | options
    return [info.name for info in await router.models_for(name, caller, **asked)]


def caller_with(*models: str) -> Caller:
    return Caller("key-1", key=ApiKey(id="key-1", name="k", created_s=0, models=models))


async def test_an_unknown_name_is_told_the_names_near_to_it(router: ModelRouter) -> None:
    with pytest.raises(NotFound, match=r"'Qwen2' does not exist here\. Did you mean 'qwen'\?") as refused:
        await names(router, "Qwen2")

    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(NotFound, match=r"'unheard-of' does not exist here\.$"):
        await names(router, "unheard-of")


async def test_a_key_is_told_no_names_that_it_may_not_use(router: ModelRouter) -> None:
    with pytest.raises(NotFound, match=r"does not exist here\.$"):
        await names(router, "qwen1", caller_with("qwen1", "small"))


async def test_an_alias_stands_for_its_model_and_the_default_for_no_name(router: ModelRouter) -> None:
    assert await names(router, "gpt-4o") == ["qwen"]
    assert await names(router, "") == ["qwen"]
    assert await names(router, "default") == ["qwen"]


async def test_without_a_default_a_name_is_required(client: Redis) -> None:
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'model'"):
        await names(model_router(client), "")
    with pytest.raises(NotFound):
        await names(model_router(client), "default")


async def test_a_route_goes_to_its_warm_model(client: Redis, router: ModelRouter) -> None:
    assert await names(router, "coder") == ["big", "qwen"]

    await serve(client, "qwen")

    assert await names(router, "coder") == ["qwen", "big"]


async def test_a_route_spills_when_the_wait_is_too_long(client: Redis, router: ModelRouter) -> None:
    await serve(client, "big")
    await fill(client, "big", 1)
    assert await names(router, "coder") == ["big", "qwen"]

    await fill(client, "big", 1)

    assert await names(router, "coder") == ["qwen", "big"]
    assert await names(router, "stable") == ["big", "qwen"]
    assert await names(router, "coder", priority=Priority.INTERACTIVE) == ["big", "qwen"]  # it waits for none of them


async def test_batch_jobs_spill_nowhere(client: Redis, router: ModelRouter) -> None:
    await serve(client, "big")
    await fill(client, "big", 3, priority=Priority.BATCH)

    assert await names(router, "coder", priority=Priority.BATCH) == ["big", "qwen"]


async def test_a_paused_model_comes_last(client: Redis, router: ModelRouter) -> None:
    await RedisQueue(client).pause("big", paused=True)

    assert await names(router, "coder") == ["qwen", "big"]


async def test_a_repeated_request_goes_where_the_first_one_went(client: Redis, router: ModelRouter) -> None:
    first = Idempotency(key="t:1", fingerprint="f")
    await RedisQueue(client).enqueue(make_job("qwen"), bounds=BOUNDS, idempotency=first)

    assert await names(router, "coder", idempotency=first) == ["qwen", "big"]
    assert await names(router, "coder", idempotency=Idempotency(key="t:2", fingerprint="f")) == ["big", "qwen"]


async def test_a_key_uses_a_route_by_the_routes_name_or_by_its_models(router: ModelRouter) -> None:
    assert await names(router, "coder", caller_with("coder")) == ["big", "qwen"]
    assert await names(router, "coder", caller_with("qwen")) == ["qwen"]
    with pytest.raises(Forbidden):
        await names(router, "coder", caller_with("small"))
    with pytest.raises(Forbidden):
        await names(router, "qwen", caller_with("coder"))


async def test_a_route_whose_models_are_not_there_says_so(client: Redis, router: ModelRouter) -> None:
    await RouteTable(client).write({"lost": Route(order=("nosuch", "neither"))}, "")

    with pytest.raises(NotFound, match="None of the models of 'lost' exists here: nosuch, neither"):
        await names(router, "lost")


async def test_a_job_goes_to_the_first_model_that_it_fits(client: Redis, router: ModelRouter) -> None:
    admission = Admission(router, load_settings())

    async def model_of(prompt: str) -> str:
        return (await completion(admission, "short", prompt)).model

    assert await model_of("x" * 100) == "small"
    assert await model_of("x" * 101) == "big"
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 10 tokens"):
        await model_of("x" * 20_000)


async def completion(admission: Admission, model: str, prompt: str) -> Job:
    options = RequestOptions(caller=ANYBODY)
    return await admission.job("cmpl", model, Kind.COMPLETION, options, request={"prompts": [prompt]})


async def test_routes_are_read_again_and_another_hosts_names_are_left(client: Redis) -> None:
    now = [100.0]
    router, table = model_router(client, clock=lambda: now[0]), RouteTable(client)
    await announce(client, "qwen")
    await table.write({"mine": Route(order=("qwen",)), "old": Route(order=("qwen",))}, "")
    await table.write({"other": Route(order=("qwen",), spill_after_s=3)}, "other")
    assert (await router.routing()).routes["mine"].spill_after_s == math.inf

    await table.write({"mine": Route(order=("qwen",))}, "", before=["mine", "old"])
    now[0] += ROUTES_FOR_S

    routing = await router.routing()
    assert set(routing.routes) == {"mine", "other"}
    assert (routing.default, routing.routes["other"].spill_after_s) == ("other", 3)


async def test_the_loading_of_a_model_counts_as_its_wait(client: Redis, router: ModelRouter) -> None:
    await hosted(client, "big", HostedState.CONFIGURED, load_s=40)
    await hosted(client, "qwen", HostedState.CONFIGURED, load_s=5)

    assert await names(router, "coder") == ["qwen", "big"]  # 40 s are longer than the 30 s from which it spills


async def test_a_model_that_could_not_be_loaded_comes_last(client: Redis, router: ModelRouter) -> None:
    await hosted(client, "big", HostedState.FAILED)

    assert await names(router, "coder") == ["qwen", "big"]
    assert await names(router, "big") == ["big"]


async def hosted(client: Redis, model: str, state: HostedState, *, load_s: float = 0) -> None:
    host = Host(id=f"host-of-{model}", hostname="h", machine="m", pid=1)
    await Hosting(client).write(host, [HostedModel(host=host.id, model=model, state=state, since_s=1, load_s=load_s)])
