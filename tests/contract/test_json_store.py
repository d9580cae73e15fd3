"""Records that neighbouring releases write and read side by side."""

import json
from dataclasses import asdict

import pytest
from redis.asyncio import Redis

from api.stores.batches import Batch, BatchStore, Status
from api.stores.json_store import JsonStore, RecordStore
from api.stores.responses import RESPONSES, ResponseRecord
from api.stores.stored_chats import STORED_CHATS, StoredChat
from api.stores.webhook_deliveries import WebhookDelivery, WebhookDeliveryStore
from shared.domain.errors import NotFound
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys

Responses = RecordStore[ResponseRecord]
Chats = RecordStore[StoredChat]
RESPONSE = ResponseRecord(
    id="resp_1", tenant="t", created_s=7, background=False, head={"model": "é"}, items=[{"type": "message"}], own=0
)
CHAT = StoredChat(
    id="chatcmpl-1", tenant="t", model="m", created_ms=9_000_000_000_000, metadata={"a": "b"}, messages=[], view="{}"
)
# These are the bytes that release 0.2 wrote.
RESPONSE_JSON = (
    '{"id": "resp_1", "tenant": "t", "created_s": 7, "background": false, "head": {"model": "\\u00e9"}, '
    '"items": [{"type": "message"}], "own": 0}'
)
CHAT_JSON = (
    '{"id": "chatcmpl-1", "tenant": "t", "model": "m", "created_ms": 9000000000000, "metadata": {"a": "b"}, '
    '"messages": [], "view": "{}"}'
)


@pytest.fixture
def responses(client: Redis) -> Responses:
    return RecordStore(client, RESPONSES, ttl_s=60, tenant_bytes_max=10_000)


@pytest.fixture
def chats(client: Redis) -> Chats:
    return RecordStore(client, STORED_CHATS, ttl_s=60, tenant_bytes_max=10_000)


async def test_a_record_is_what_release_0_2_wrote(client: Redis, responses: Responses, chats: Chats) -> None:
    queue = RedisQueue(client)

    await queue.store(responses.stored(RESPONSE))
    await queue.store(chats.stored(CHAT))

    assert await client.get("penstock:response:resp_1") == RESPONSE_JSON.encode()
    assert await client.get("penstock:chat:chatcmpl-1") == CHAT_JSON.encode()
    assert await client.zrange("penstock:chats:t", 0, -1) == [b"chatcmpl-1"]
    assert 0 < await client.ttl("penstock:response:resp_1") <= 60
    assert await responses.get("resp_1", tenant="t") == RESPONSE
    assert await chats.get_many(["none", "chatcmpl-1"]) == [CHAT]


@pytest.mark.parametrize("tenant", ["other", ""])
async def test_a_record_of_another_tenant_is_as_good_as_none(client: Redis, responses: Responses, tenant: str) -> None:
    await client.set(keys.response("resp_1"), RESPONSE_JSON)

    with pytest.raises(NotFound, match="There is no response resp_1") as refused:
        await responses.get("resp_1", tenant=tenant)

    assert refused.value.param == "response_id"


async def test_fields_of_a_later_release_are_left_out(client: Redis, responses: Responses) -> None:
    await client.set(keys.response("resp_1"), json.dumps(asdict(RESPONSE) | {"later": 1}))

    assert await responses.get("resp_1", tenant="t") == RESPONSE


@pytest.mark.parametrize("data", [b"\xff", b"[]", b"7", b"{}", b'{"id": "resp_1"}'])
async def test_a_record_that_cannot_be_read_keeps_nobody_from_the_others(
    client: Redis, responses: Responses, data: bytes
) -> None:
    await client.set(keys.response("bad"), data)
    await client.set(keys.response("resp_1"), RESPONSE_JSON)

    assert await responses.get_many(["bad", "resp_1"]) == [RESPONSE]
    with pytest.raises(NotFound):
        await responses.get("bad", tenant="t")


async def test_a_batch_has_its_status_again(client: Redis) -> None:
    at = {Status.VALIDATING: 1}
    batch = Batch(
        id="b",
        tenant="t",
        key="",
        endpoint="/",
        input_file_id="f",
        window_s=1,
        status=Status.FAILED,
        at=at,  # type: ignore[arg-type]
    )
    await client.set(keys.batch("b"), json.dumps(asdict(batch)))

    store: JsonStore[Batch] = BatchStore(client, owner="api")

    found = await store.get("b")
    assert found == batch
    assert found.status.ended


async def test_a_delivery_that_cannot_be_read_does_not_hide_the_others(client: Redis) -> None:
    store = WebhookDeliveryStore(client, clock=lambda: 1000.0)
    good = WebhookDelivery(id="good", tenant="t", endpoint="we_1", event="evt_1", payload="{}")
    await client.set(keys.delivery("bad"), b"{}")
    await client.zadd(keys.DELIVERIES, {"bad": 1})
    await store.add(good)

    assert await store.claim(10) == [good]
