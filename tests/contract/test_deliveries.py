"""Webhook deliveries are never lost, never repeated after a success, and never held up by another's receiver."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from api.background.webhook_notifier import BUSY_S, EACH_AT_ONCE, TAKEN_AT_ONCE, WebhookNotifier
from api.stores.webhook_deliveries import (
    LEASE_S,
    LIFETIME_S,
    PAUSES_S,
    WebhookDelivery,
    WebhookDeliveryStore,
    shared_out,
)
from api.stores.webhooks import EVENTS, Endpoint, Webhooks
from shared.domain.errors import InvalidRequest, LimitReached
from shared.queue.event_channel import RedisChannel
from shared.redis import keys

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def delivery(name: str, tenant: str = "t") -> WebhookDelivery:
    return WebhookDelivery(id=name, tenant=tenant, endpoint="we_1", event="evt_1", payload="{}")


@pytest.fixture
def store(client: Redis) -> WebhookDeliveryStore:
    return WebhookDeliveryStore(client, clock=lambda: 1000.0)


async def due_at(client: Redis) -> dict[str, float]:
    found: Any = await client.zrange(keys.DELIVERIES, 0, -1, withscores=True)
    return {member.decode(): score for member, score in found}


async def test_what_is_added_again_is_told_once(client: Redis, store: WebhookDeliveryStore) -> None:
    await store.add(delivery("d"))
    (taken,) = await store.claim(10)
    await store.remove(taken)

    await store.add(delivery("d"))

    assert await store.claim(10) == []
    assert 0 < await client.ttl(keys.delivery("d")) <= LIFETIME_S


async def test_what_is_taken_is_due_again_should_its_process_die(client: Redis, store: WebhookDeliveryStore) -> None:
    await store.add(delivery("d"))

    assert await store.claim(10) == [delivery("d")]

    assert await store.claim(10) == []
    assert await due_at(client) == {"d": 1000 + LEASE_S}


async def test_an_attempt_in_vain_is_counted_and_the_last_is_the_last(
    client: Redis, store: WebhookDeliveryStore
) -> None:
    await store.add(delivery("d"))
    for pause_s in PAUSES_S:
        (tried,) = await WebhookDeliveryStore(client, clock=lambda: 1e9).claim(10)
        await store.retry_later(tried)
        assert await due_at(client) == {"d": 1000 + pause_s}
    (last,) = await WebhookDeliveryStore(client, clock=lambda: 1e9).claim(10)

    await store.retry_later(last)

    assert last.attempts == len(PAUSES_S)
    assert await due_at(client) == {}


async def test_what_has_outlived_itself_is_dropped_and_does_not_come_back(
    client: Redis, store: WebhookDeliveryStore
) -> None:
    await store.add(delivery("d"))
    (taken,) = await store.claim(10)
    await client.delete(keys.delivery("d"))

    await store.retry_later(taken)
    assert await client.exists(keys.delivery("d")) == 0

    assert await WebhookDeliveryStore(client, clock=lambda: 1e9).claim(10) == []
    assert await due_at(client) == {}


async def test_the_commands_of_a_transaction_say_the_same(client: Redis, store: WebhookDeliveryStore) -> None:
    for command in store.addition(delivery("d")):
        await client.execute_command(*command)

    assert await store.claim(10) == [delivery("d")]
    assert await client.ttl(keys.delivery("d")) > 0


def test_one_tenant_gets_a_share_of_what_runs_at_once() -> None:
    due = [delivery(str(number), "a") for number in range(5)] + [delivery("b", "b"), delivery("c", "c")]

    now, wait = shared_out(due, running={"a": 1, "d": 1}, at_once=5, each_at_once=3)

    assert [each.id for each in now] == ["0", "1", "b"]
    assert [each.id for each in wait] == ["2", "3", "4", "c"]


@asynccontextmanager
async def receiving(answer: Answer) -> AsyncIterator[str]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a header that comes byte by byte and never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    try:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)
    except OSError:
        return
    finally:
        writer.close()


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with an endless header, as fast as possible."""
    await _without_end(reader, writer, b"HTTP/1.1 200 OK\r\nx: ")


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a good status and an endless body."""
    await _without_end(reader, writer, b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")


async def _without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(head)
    try:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
    except OSError:
        return
    finally:
        writer.close()


def endpoint(url: str) -> Endpoint:
    return Endpoint(id="we_1", tenant="t", url=url, events=list(EVENTS), secret="whsec_c2VjcmV0", created_s=1)


async def sent(client: Redis, answer: Answer, *, timeout_s: float) -> tuple[Any, float]:
    """Return a delivery's outcome, and the seconds until it."""
    webhooks = Webhooks(client, private=True, timeout_s=timeout_s)
    async with receiving(answer) as url:
        began = time.monotonic()
        return await webhooks.send(endpoint(url), "evt", "{}"), time.monotonic() - began


async def test_a_receiver_that_drips_has_a_time_for_all_of_its_answer(client: Redis) -> None:
    result, seconds = await sent(client, drip, timeout_s=0.3)

    assert not result.good
    assert result.error == "no answer within 0.3 seconds"
    assert seconds < 2


async def test_a_head_without_bound_is_not_read_on(client: Redis) -> None:
    result, seconds = await sent(client, flood, timeout_s=20)

    assert not result.good
    assert seconds < 10


async def test_a_body_is_not_read(client: Redis) -> None:
    result, seconds = await sent(client, pour, timeout_s=20)

    assert result.good
    assert seconds < 10


@pytest.mark.parametrize("many", [1, 3 * TAKEN_AT_ONCE])
async def test_a_tenant_with_slow_receivers_holds_nobody_up(client: Redis, many: int) -> None:
    """Many deliveries of the slow tenant are due before the other tenant's single one."""
    open_now, most, hanging, told = 0, 0, asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now, most = open_now + 1, max(most, open_now + 1)
        hanging.set()
        await drip(reader, writer)
        open_now -= 1

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        told.set()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    webhooks = Webhooks(client, private=True, timeout_s=20)
    async with receiving(hang) as slow, receiving(take) as quick:
        await webhooks.add("slow", slow, [])
        await webhooks.add("quick", quick, [])
        for number in range(many):
            await webhooks.notify("slow", "response.completed", f"resp_{number}")
        notifier = asyncio.create_task(WebhookNotifier([client], webhooks=webhooks, channel=RedisChannel(client)).run())
        async with asyncio.timeout(10):
            await hanging.wait()
        await webhooks.notify("quick", "response.completed", "resp_quick")

        async with asyncio.timeout(3):
            await told.wait()

        assert most <= EACH_AT_ONCE
        notifier.cancel()
        await asyncio.wait([notifier])


async def test_a_log_that_cannot_be_read_holds_no_notice_up(client: Redis) -> None:
    bodies: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        bodies.put_nowait(await reader.readuntil(b"}}"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    webhooks = Webhooks(client, private=True)
    await client.rpush(keys.log("resp_1"), b"\xff broken")
    await client.rpush(keys.NOTICES, "resp_1 t", "resp_2 t")
    async with receiving(take) as url:
        await webhooks.add("t", url, ["response.failed"])
        notifier = asyncio.create_task(WebhookNotifier([client], webhooks=webhooks, channel=RedisChannel(client)).run())

        async with asyncio.timeout(5):
            told = [json.loads(await bodies.get()) for _ in range(2)]

        assert {(event["type"], event["data"]["id"]) for event in told} == {
            ("response.failed", "resp_1"),
            ("response.failed", "resp_2"),
        }
        notifier.cancel()
        await asyncio.wait([notifier])


@pytest.fixture
def silent_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Let name servers stay silent about these hosts until the test ends."""
    names, over, look_up = set[str](), threading.Event(), socket.getaddrinfo

    def looked_up(host: Any, *args: Any, **options: Any) -> Any:
        if host in names:
            over.wait(60)
        return look_up("127.0.0.1" if str(host).endswith(".test") else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    yield names
    over.set()


async def test_a_name_that_nobody_answers_for_is_refused_in_time(client: Redis, silent_names: set[str]) -> None:
    silent_names.add("silent.test")
    webhooks = Webhooks(client, private=True, lookup_s=0.2)

    async with asyncio.timeout(5):
        with pytest.raises(InvalidRequest, match=r"does not answer in time: silent\.test") as refused:
            await webhooks.add("t", "http://silent.test/", [])

    assert refused.value.param == "url"
    assert await webhooks.all("t") == []


async def test_names_that_nobody_answers_for_hold_no_delivery_up(client: Redis, silent_names: set[str]) -> None:
    """Many endpoints with such names are added at once, for one tenant or for several."""
    told = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        told.set()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    silent_names.add("silent.test")
    webhooks = Webhooks(client, private=True, lookup_s=0.5)
    async with receiving(take) as url:
        await webhooks.add("quick", url, [])
        adding = [webhooks.add(f"slow-{number % 20}", "http://silent.test/", []) for number in range(80)]
        added = asyncio.gather(*adding, return_exceptions=True)
        await webhooks.notify("quick", "response.completed", "resp_quick")
        notifier = asyncio.create_task(WebhookNotifier([client], webhooks=webhooks, channel=RedisChannel(client)).run())

        async with asyncio.timeout(5):
            await told.wait()
            ends = await added

        assert {type(end) for end in ends} == {InvalidRequest, LimitReached}
        notifier.cancel()
        await asyncio.wait([notifier])


async def test_a_delivery_that_waits_for_another_look_up_of_its_tenant_is_not_an_attempt(
    client: Redis, silent_names: set[str]
) -> None:
    webhooks = Webhooks(client, private=True, lookup_s=0.2)
    made = await webhooks.add("t", "http://silent.test/", [])
    other = await webhooks.add("another", "http://other.test:1/", [])
    silent_names.add("silent.test")

    results = [await webhooks.send(made, f"evt_{number}", "{}") for number in range(3)]

    assert [result.attempted for result in results] == [True, False, False]
    assert not (await webhooks.send(other, "evt", "{}")).good  # no server listens there, but the delivery was tried
    assert (await webhooks.send(other, "evt", "{}")).attempted
    await webhooks.notify("t", "response.completed", "resp_1")
    (taken,) = await webhooks.queue.claim(10)
    await WebhookNotifier([client], webhooks=webhooks, channel=RedisChannel(client))._tell(taken)
    (waiting,) = await WebhookDeliveryStore(client, clock=lambda: time.time() + 2 * BUSY_S).claim(10)
    assert waiting == taken
