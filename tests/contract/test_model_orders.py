"""An operator's wishes become orders to the hosts that have the models."""

import asyncio
import math
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from shared.catalog.hosting import Hosting
from shared.catalog.model_orders import FOREVER_S, ModelOrders, PlacedOrder
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.model_states import model_objects
from shared.catalog.routes import RouteTable
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.hosting import Host, HostedModel, HostedState, OrderVerb, When
from shared.domain.job import ModelInfo
from shared.domain.routing import Route
from shared.redis import keys

HERE = Host(id="here-1", hostname="here", machine="boot", pid=1)
THERE = replace(HERE, id="there-2", hostname="there", machine="other")
A = HostedModel(host="here-1", model="a", state=HostedState.READY, since_s=5, workers=1)
B = HostedModel(host="here-1", model="b", state=HostedState.CONFIGURED, since_s=5)
NOW = 1000.0


@pytest.fixture
async def hosting(client: Redis) -> Hosting:
    """Two hosts: both have `a`, which is loaded on the first; `b` and `c` are on one each."""
    hosting = Hosting(client)
    await hosting.write(HERE, [A, B])
    away = [replace(A, host="there-2", state=HostedState.CONFIGURED, workers=0), replace(B, host="there-2", model="c")]
    await hosting.write(THERE, away)
    await RouteTable(client).write({"gpt": Route(order=("a",)), "both": Route(order=("a", "b"))}, "")
    return hosting


@pytest.fixture
def orders(client: Redis, hosting: Hosting) -> ModelOrders:
    return ModelOrders(hosting, RouteTable(client), clock=lambda: NOW)


def hosts(placed: list[PlacedOrder]) -> list[str]:
    return [each.host for each in placed]


async def test_a_model_is_loaded_where_it_is_nearest_to_being_loaded(hosting: Hosting, orders: ModelOrders) -> None:
    assert hosts(await orders.load("gpt")) == ["here-1"]
    assert hosts(await orders.load("a", host="there")) == ["there-2"]

    (order,) = await hosting.take_orders("there-2")
    assert (order.verb, order.model) == (OrderVerb.LOAD, "a")


async def test_a_model_is_unloaded_wherever_it_is_loaded(hosting: Hosting, orders: ModelOrders) -> None:
    assert hosts(await orders.unload("a", when=When.NOW)) == ["here-1"]
    assert await orders.unload("b") == []
    assert [each.order.model for each in await orders.unload_all()] == ["a"]

    first, _ = await hosting.take_orders("here-1")
    assert (first.verb, first.when) == (OrderVerb.UNLOAD, When.NOW)


async def test_models_are_switched_on_a_host_that_has_both(hosting: Hosting, orders: ModelOrders) -> None:
    await orders.switch("gpt", "b")

    (order,) = await hosting.take_orders("here-1")
    assert (order.verb, order.model, order.instead, order.when) == (OrderVerb.SWITCH, "a", "b", When.RUNNING)
    with pytest.raises(InvalidRequest, match="No host has both models, 'b' and 'c'"):
        await orders.switch("b", "c")


async def test_a_loaded_model_is_kept_for_a_time(hosting: Hosting, orders: ModelOrders) -> None:
    for seconds in (1800, math.inf, 0):
        await orders.keep("a", seconds)

    assert [each.until_s for each in await hosting.take_orders("here-1")] == [NOW + 1800, NOW + FOREVER_S, 0]


async def test_a_model_that_is_not_loaded_is_kept_where_it_is_nearest_to_being_loaded(
    hosting: Hosting, orders: ModelOrders
) -> None:
    failed = replace(A, host="there-2", state=HostedState.FAILED, workers=0)
    await hosting.write(HERE, [replace(A, state=HostedState.CONFIGURED, workers=0)])
    await hosting.write(THERE, [failed])

    assert hosts(await orders.keep("a", 60)) == ["here-1"]
    assert hosts(await orders.keep("a", 0)) == ["here-1", "there-2"]


async def test_a_name_that_no_host_has_is_refused(orders: ModelOrders) -> None:
    with pytest.raises(NotFound, match="No host has the model 'unknown'"):
        await orders.load("unknown")
    with pytest.raises(NotFound, match="No host has the model 'gtp'; did you mean 'gpt'\\?"):
        await orders.load("gtp")
    with pytest.raises(NotFound, match="The host 'there' does not have the model 'b'"):
        await orders.load("b", host="there")
    with pytest.raises(InvalidRequest, match="'both' stands for several models: a, b"):
        await orders.load("both")


async def test_outcomes_are_awaited_for_a_bounded_time(hosting: Hosting, orders: ModelOrders) -> None:
    placed = [*await orders.load("a"), *await orders.load("b")]
    assert [each.outcome for each in await orders.outcomes(placed)] == [None, None]

    await hosting.report(placed[0].order.id)
    waiting = asyncio.create_task(orders.outcomes(placed, wait_s=30))
    await hosting.report(placed[1].order.id, "there is no room")
    done = await asyncio.wait_for(waiting, 10)

    assert [(each.outcome, each.failure) for each in done] == [("done", ""), ("there is no room", "there is no room")]


async def test_every_model_is_shown_with_its_state(client: Redis, hosting: Hosting) -> None:
    registry = ModelRegistry(client)
    for name in ("b", "served", "absent"):
        await registry.announce(ModelInfo(name=name, engine="batched", context_length=9, created_s=0))
    await client.hset(keys.worker("w"), "queues", "served")
    for name in ("b", "served"):
        await client.sadd(keys.workers_of(name), keys.worker("w"))
    failed = replace(B, host="there-2", model="c", state=HostedState.FAILED, reason="no file", memory_bytes=7)
    await hosting.write(THERE, [failed])

    found = {each["id"]: each for each in await model_objects(registry, hosting)}

    states = {"a": "ready", "absent": "absent", "b": "ready", "c": "failed", "served": "ready"}
    assert {name: each["state"] for name, each in found.items()} == states  # a worker of no host serves b
    assert (found["c"]["reason"], found["c"]["hosts"][0]["memory_bytes"]) == ("no file", 7)
    assert [(each["hostname"], each["state"]) for each in found["a"]["hosts"]] == [
        ("here", "ready"),
        ("there", "configured"),
    ]
