"""Hosts write what they have, and others read it."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from shared.catalog.hosting import DONE, Hosting, best_of
from shared.domain.errors import NotFound, QueueUnavailable
from shared.domain.hosting import Host, HostedModel, HostedState, Order, OrderVerb, When
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import make_job

HERE = Host(id="here-1", hostname="here", machine="boot", pid=1, memory_bytes=100, devices=("0",), file="models.toml")
THERE = replace(HERE, id="there-2", hostname="there", machine="other")
IDLE = HostedModel(host="here-1", model="m", state=HostedState.CONFIGURED, since_s=5)
READY = replace(IDLE, host="there-2", state=HostedState.READY, workers=1, load_s=2.5)


async def test_what_hosts_write_is_read_by_model(client: Redis) -> None:
    there = Hosting(client)

    await there.write(HERE, [IDLE, replace(IDLE, model="n")])
    await there.write(THERE, [READY])

    assert await there.hosts() == [HERE, THERE]
    assert await there.all() == {"m": [IDLE, READY], "n": [replace(IDLE, model="n")]}
    assert await there.of("m") == [IDLE, READY]
    assert await there.of("unknown") == []


async def test_a_host_that_is_not_heard_of_is_forgotten_with_its_models(client: Redis) -> None:
    there = Hosting(client)
    await there.write(HERE, [IDLE])
    await there.write(THERE, [READY])

    assert 0 < await client.ttl(keys.hosted(HERE.id)) <= 10
    await client.delete(keys.host(HERE.id), keys.hosted(HERE.id))  # as at the end of their lifetime

    assert await there.hosts() == [THERE]
    assert await there.of("m") == [READY]
    assert await client.smembers(keys.HOSTS) == {b"there-2"}


async def test_a_host_that_leaves_takes_its_models_along(client: Redis) -> None:
    there = Hosting(client)
    await there.write(HERE, [IDLE])

    await there.leave(HERE.id)

    assert await there.hosts() == []
    assert await there.all() == {}


async def test_a_host_is_told_that_redis_has_forgotten_its_models(client: Redis) -> None:
    there = Hosting(client)

    assert not await there.write(HERE, [IDLE])
    assert await there.write(HERE, [], gone=["n"])
    await client.flushall()
    assert not await there.write(HERE, [])


async def test_a_record_of_a_later_release_can_be_read(client: Redis) -> None:
    there = Hosting(client)
    await there.write(HERE, [IDLE])
    later = b'{"host":"here-1","model":"m","state":"ready","since_s":5,"colour":"red"}'

    await client.hset(keys.hosted(HERE.id), "m", later)

    assert await there.of("m") == [replace(IDLE, state=HostedState.READY)]


async def test_an_order_that_nobody_can_read_has_failed_and_those_beside_it_are_taken(client: Redis) -> None:
    there = Hosting(client)
    good = Order(id="o2", verb=OrderVerb.LOAD, model="m")
    later = b'{"id":"o1","verb":"defragment","model":"m"}'
    await client.rpush(keys.orders(HERE.id), later, b"{", b"[]")

    await there.place(HERE.id, good)

    assert await there.take_orders(HERE.id) == [good]
    assert await there.take_orders(HERE.id) == []
    assert "cannot read the order" in str(await there.outcome("o1"))


async def test_a_model_in_a_state_of_a_later_release_is_left_out(client: Redis) -> None:
    there = Hosting(client)
    await there.write(HERE, [IDLE, replace(IDLE, model="n")])

    await client.hset(keys.hosted(HERE.id), "m", b'{"host":"here-1","model":"m","state":"frozen","since_s":5}')

    assert await there.of("m") == []
    assert list(await there.all()) == ["n"]


async def test_one_host_holds_a_machine_however_many_ask_at_once(client: Redis) -> None:
    hosts = [f"host-{number}" for number in range(20)]
    hostings = [Hosting(client) for _ in hosts]

    held = await asyncio.gather(*(each.hold("boot", host) for each, host in zip(hostings, hosts, strict=True)))

    assert sum(held) == 1
    holder = hosts[held.index(True)]
    assert await hostings[0].holder("boot") == holder
    assert await hostings[0].hold("boot", holder)  # and goes on to
    assert 0 < await client.pttl(keys.machine("boot")) <= 10_000
    other = next(host for host in hosts if host != holder)
    await hostings[1].leave(other, "boot")
    assert await hostings[1].holder("boot") == holder
    await hostings[1].leave(holder, "boot")
    assert await hostings[2].hold("boot", other)


async def test_an_order_is_taken_once_and_its_outcome_is_told(client: Redis) -> None:
    there = Hosting(client)
    order = Order(id="o1", verb=OrderVerb.UNLOAD, model="m", when=When.NOW)

    await there.place(HERE.id, order)

    assert await there.outcome("o1") is None
    assert await there.take_orders(HERE.id) == [order]
    assert await there.take_orders(HERE.id) == []
    await there.report("o1")
    await there.report("o2", "there is no model m")
    assert (await there.outcome("o1"), await there.outcome("o2")) == (DONE, "there is no model m")


async def test_a_host_that_takes_no_orders_gets_no_more(client: Redis) -> None:
    there = Hosting(client, orders_max=1)
    await there.place(HERE.id, Order(id="o1", verb=OrderVerb.LOAD, model="m"))

    with pytest.raises(QueueUnavailable, match="here-1"):
        await there.place(HERE.id, Order(id="o2", verb=OrderVerb.LOAD, model="m"))


async def test_hosts_hear_of_jobs_that_have_no_worker_and_of_orders(client: Redis) -> None:
    queue, heard = RedisQueue(client), client.pubsub(ignore_subscribe_messages=True)
    await heard.subscribe(keys.WANTED)
    await heard.get_message(timeout=1)  # the subscription

    await queue.enqueue(make_job("absent"), bounds=Bounds(jobs_max=10))
    await client.sadd(keys.workers_of("served"), "rq:worker:w")
    await queue.enqueue(make_job("served"), bounds=Bounds(jobs_max=10))
    await Hosting(client).place(HERE.id, Order(id="o1", verb=OrderVerb.LOAD, model="ordered"))

    heard_of = [(await heard.get_message(timeout=1) or {}).get("data") for _ in range(3)]
    await heard.aclose()
    assert heard_of == [b"absent", b"ordered", None]


def test_of_several_hosts_the_one_that_serves_first_counts() -> None:
    failed = replace(IDLE, state=HostedState.FAILED)

    assert best_of([failed, READY, IDLE]) == READY
    assert best_of([failed, IDLE]) == IDLE
    with pytest.raises(NotFound):
        best_of([])
