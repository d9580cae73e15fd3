"""What the operator's moderation server flags is accepted by no endpoint."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Stack, standalone_stack
from tests.e2e.test_batches import chat, ended, rows_of, start
from tests.unit.api.test_moderation import verdict
from tests.upstreams import Fault, StandIn, in_thread


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with in_thread(StandIn({}, answers={"/moderations": verdict})) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def stack(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings: dict[str, Any] = {
        "moderation_url": f"{server.url}/moderations",
        "moderated_inputs": "closed",
        "scripted_tokens": 3,
    }
    with standalone_stack(tmp_path_factory.mktemp("moderation"), "scripted", **settings) as stack:
        yield stack


def test_flagged_inputs_are_refused_and_others_are_answered(stack: Stack) -> None:
    client = stack.client()
    asks: list[tuple[Any, str, str]] = [
        (client.chat.completions.create, "messages", "messages"),
        (client.completions.create, "prompt", "prompt"),
        (client.responses.create, "input", "input"),
    ]
    for ask, name, param in asks:
        for text in ("good", "bad"):
            said: Any = [{"role": "user", "content": text}] if name == "messages" else text
            if text == "good":
                assert ask(model="scripted", **{name: said}).usage
                continue
            with pytest.raises(openai.BadRequestError) as refused:
                ask(model="scripted", **{name: said})
            assert (refused.value.code, refused.value.param) == ("content_policy_violation", param)


def test_a_flagged_message_is_refused_in_the_shape_of_its_api(stack: Stack) -> None:
    body = {"model": "scripted", "max_tokens": 3, "messages": [{"role": "user", "content": "bad"}]}

    refused = httpx.post(f"{stack.base}/v1/messages", json=body)

    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_nothing_is_accepted_while_there_is_no_verdict(stack: Stack, server: StandIn) -> None:
    server.faults.append(Fault(status=500))

    with pytest.raises(openai.InternalServerError) as refused:
        stack.client().responses.create(model="scripted", input="good")

    assert (refused.value.status_code, refused.value.code) == (503, "moderation_unavailable")
    assert refused.value.response.headers["x-penstock-dropped-reason"] == "moderation_unavailable"


def test_the_lines_of_a_batch_wait_while_there_is_no_verdict(stack: Stack, server: StandIn) -> None:
    server.faults += [Fault(status=500), Fault(status=400)]
    client = stack.client()

    batch = ended(client, start(client, [chat(n) for n in range(3)]).id)

    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    (row,) = rows_of(client, batch.error_file_id)
    assert row["response"]["body"]["error"]["code"] == "moderation_unavailable"


def test_clients_get_the_verdict_itself(stack: Stack, caller: Stack) -> None:
    made = stack.client().moderations.create(input=["good", "bad"])

    assert [result.flagged for result in made.results] == [False, True]
    with pytest.raises(openai.NotFoundError, match="PENSTOCK_MODERATION_URL"):
        caller.client().moderations.create(input="x")
