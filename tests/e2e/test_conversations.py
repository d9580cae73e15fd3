"""Stored conversations by the real client: created, read, changed, gone on with by responses, counted and compacted."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.harness import Stack, eventually

SHORT: dict[str, Any] = {"model": "scripted", "max_output_tokens": 3, "temperature": 0}
HELLO: Any = {"type": "message", "role": "user", "content": "hello"}


@pytest.fixture
def conversations(caller: Stack) -> Any:
    return caller.client().conversations


def texts(conversations: Any, conversation_id: str) -> list[str]:
    return [item.content[0].text for item in conversations.items.list(conversation_id, order="asc")]


def entries(stack: Stack) -> set[bytes]:
    return set(stack.redis.scan_iter("penstock:conversation-entry:*"))


def test_a_conversation_is_created_changed_and_deleted(conversations: Any, caller: Stack) -> None:
    before = entries(caller)
    made = conversations.create(metadata={"a": "b"}, items=[HELLO])
    assert entries(caller) > before
    assert (made.object, made.metadata) == ("conversation", {"a": "b"})
    ttl = caller.redis.ttl(f"penstock:conversation:{made.id}")

    assert conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}

    assert conversations.retrieve(made.id).metadata == {"c": "d"}
    assert caller.redis.ttl(f"penstock:conversation:{made.id}") <= ttl
    theirs = caller.client(api_key="another")
    with pytest.raises(openai.NotFoundError):
        theirs.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError) as refused:
        theirs.responses.create(**SHORT, input="x", conversation=made.id)
    assert refused.value.param == "conversation"
    assert conversations.delete(made.id).deleted
    for call in (conversations.retrieve, conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert entries(caller) == before


def test_items_are_added_read_and_removed(conversations: Any) -> None:
    made = conversations.create()
    added = conversations.items.create(
        made.id, items=[HELLO, {"type": "message", "role": "assistant", "content": "yes"}]
    )
    first, second = added.data

    assert [item.id for item in conversations.items.list(made.id, order="asc", limit=1)] == [first.id, second.id]
    assert conversations.items.retrieve(second.id, conversation_id=made.id).content[0].text == "yes"
    assert conversations.items.delete(first.id, conversation_id=made.id).id == made.id
    assert texts(conversations, made.id) == ["yes"]
    for call in (conversations.items.retrieve, conversations.items.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id, conversation_id=made.id)
    with pytest.raises(openai.BadRequestError, match="at most 20"):
        conversations.items.create(made.id, items=[HELLO] * 21)


def test_a_conversation_with_too_many_changes_can_still_be_deleted(conversations: Any, caller: Stack) -> None:
    made = conversations.create(items=[HELLO])
    index = f"penstock:conversation-items:{made.id}"
    assert caller.redis.zcard(index) == 1
    caller.redis.zadd(index, {f"entry_{at}": made.created_at * 1000 + at for at in range(1000)})
    with pytest.raises(openai.BadRequestError, match="more than 1000"):
        conversations.items.list(made.id)

    assert conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        conversations.retrieve(made.id)


def test_a_conversation_begins_within_its_bound(conversations: Any, responses: Any) -> None:
    long = responses.create(**SHORT, input="x" * 3_000_000, background=True)
    item: Any = {"type": "item_reference", "id": f"item_{long.id.removeprefix('resp_')}_0"}

    with pytest.raises(openai.BadRequestError, match="at most 8000000") as refused:
        conversations.create(items=[item] * 3)

    assert refused.value.param == "items"


def test_responses_read_a_conversation_and_add_to_it(conversations: Any, responses: Any) -> None:
    made = conversations.create(items=[HELLO])

    one = responses.create(**SHORT, input="one", conversation=made.id)
    conversations.items.create(made.id, items=[{"type": "message", "role": "user", "content": "between"}])
    *_, last = responses.create(**SHORT, input="two", conversation={"id": made.id}, stream=True)

    said = ["hello", "one", one.output_text, "between"]
    assert one.conversation.id == made.id
    assert texts(conversations, made.id) == [*said, "two", last.response.output_text]
    roles = ["user", "user", "assistant", "user", "user"]
    turns: Any = [{"role": role, "content": text} for role, text in zip(roles, [*said, "two"], strict=True)]
    assert last.response.output_text == responses.create(**SHORT, input=turns).output_text


def test_an_item_that_was_removed_is_read_no_more(conversations: Any, responses: Any) -> None:
    made = conversations.create()
    one = responses.create(**SHORT, input="one", conversation=made.id)
    conversations.items.delete(one.output[0].id, conversation_id=made.id)

    two = responses.create(**SHORT, input="two", conversation=made.id)

    turns: Any = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert two.output_text == responses.create(**SHORT, input=turns).output_text
    assert texts(conversations, made.id) == ["one", "two", two.output_text]


def test_a_conversation_waits_for_its_response(conversations: Any, responses: Any) -> None:
    made = conversations.create()
    long = SHORT | {"max_output_tokens": 90_000}
    running = responses.create(**long, input="one", conversation=made.id, background=True)

    with pytest.raises(openai.ConflictError) as refused:
        responses.create(**SHORT, input="two", conversation=made.id)

    assert (refused.value.code, refused.value.param) == ("conversation_locked", "conversation")
    responses.cancel(running.id)
    three = responses.create(**SHORT, input="three", conversation=made.id)
    assert texts(conversations, made.id) == ["three", three.output_text]


def test_responses_that_come_together_lose_nothing_of_each_other(conversations: Any, responses: Any) -> None:
    made = conversations.create(items=[HELLO])

    def create(said: str) -> bool:
        try:
            responses.create(**SHORT, input=said, conversation=made.id)
        except openai.ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(create, map(str, range(8))))

    responses.create(**SHORT, input="last", conversation=made.id)
    heard = texts(conversations, made.id)
    assert sorted(text for text in heard if text.isdigit()) == [str(at) for at, done in enumerate(answered) if done]
    assert (heard[0], heard[-2]) == ("hello", "last")


def test_the_same_request_again_adds_nothing(conversations: Any, responses: Any) -> None:
    made = conversations.create()
    asked = SHORT | {"input": "one", "conversation": made.id, "extra_headers": {"Idempotency-Key": made.id}}

    first = responses.create(**asked)
    again = responses.create(**asked)

    assert again.id == first.id
    assert texts(conversations, made.id) == ["one", first.output_text]


def test_a_response_lets_its_conversation_live_on(conversations: Any, responses: Any, caller: Stack) -> None:
    made = conversations.create()
    key = f"penstock:conversation:{made.id}"
    caller.redis.expire(key, 100)

    responses.create(**SHORT, input="one", conversation=made.id)

    eventually("it lives on", lambda: caller.redis.ttl(key) > 100)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(conversations: Any, responses: Any) -> None:
    made = conversations.create()
    events = iter(responses.create(**SHORT | {"max_output_tokens": 50}, input="one", conversation=made.id, stream=True))
    next(events)

    conversations.delete(made.id)

    assert list(events)[-1].type == "response.incomplete"
    with pytest.raises(openai.NotFoundError):
        conversations.retrieve(made.id)


@pytest.mark.parametrize(
    ("change", "param"),
    [({"store": False}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id")],
    ids=str,
)
def test_what_excludes_a_conversation_is_refused_by_name(responses: Any, change: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(**SHORT, input="x", conversation="conv_1", **change)

    assert refused.value.param == param


def test_the_tokens_of_an_input_are_counted_as_a_response_reads_them(responses: Any, conversations: Any) -> None:
    made = conversations.create(items=[HELLO])
    asked: dict[str, Any] = {"model": "scripted", "input": "x", "instructions": "be brief", "conversation": made.id}

    counted = responses.input_tokens.count(**asked)

    assert counted.input_tokens == responses.create(**asked, max_output_tokens=1).usage.input_tokens


def test_a_compacted_conversation_goes_on(responses: Any) -> None:
    talk: Any = [HELLO, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and now?"}]

    compacted = responses.compact(model="caller", input=talk, extra_body={"parallel_tool_calls": True})

    *said, summary = compacted.output
    assert [item.content[0].text for item in said] == ["hello", "and now?"]
    assert (summary.type, compacted.object) == ("compaction", "response.compaction")
    assert compacted.usage.output_tokens > 0
    rest: Any = [item.to_dict(warnings=False) for item in compacted.output]
    assert responses.create(**SHORT, input=[*rest, {"role": "user", "content": "go on"}]).usage.input_tokens > 20
