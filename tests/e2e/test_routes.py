"""Names that stand for models, over HTTP: an alias, a route, no name at all, and a name that is unknown."""

import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest

from shared.catalog.routes import RouteTable
from shared.domain.routing import Route
from shared.redis.client import connect
from tests.e2e.harness import Stack, eventually

ROUTES = {"gpt-4o": Route(order=("scripted",)), "coder": Route(order=("nosuch", "scripted"), spill_after_s=30)}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def routed(scripted: Stack) -> Iterator[Stack]:
    async def write(routes: dict[str, Route], default: str) -> None:
        client = connect(scripted.server.url)
        await RouteTable(client).write(routes, default, before=ROUTES)
        await client.aclose()

    asyncio.run(write(ROUTES, "gpt-4o"))
    eventually("routes known", lambda: "coder" in listed(scripted))
    yield scripted
    asyncio.run(write({}, ""))
    scripted.redis.delete("penstock:default-model")


def listed(stack: Stack) -> dict[str, dict[str, object]]:
    return {each["id"]: each for each in httpx.get(f"{stack.base}/v1/models").json()["data"]}


@pytest.mark.parametrize("name", ["gpt-4o", "coder", "default", "", None])
def test_the_answer_says_which_model_it_is_of(routed: Stack, name: str | None) -> None:
    body = {"messages": HELLO, "max_tokens": 3} | ({} if name is None else {"model": name})

    whole, streamed = routed.post(body), routed.post(body | {"stream": True})

    assert whole.json()["model"] == "scripted"
    assert '"model":"scripted"' in streamed.text
    assert {each.headers["x-penstock-model"] for each in (whole, streamed)} == {"scripted"}
    assert float(whole.headers["x-penstock-estimated-wait-s"]) >= 0


def test_a_response_and_a_stored_chat_name_their_model(routed: Stack) -> None:
    client = routed.client()

    response = client.responses.create(model="coder", input="hello", max_output_tokens=16)
    chat = client.chat.completions.create(model="coder", messages=HELLO, max_tokens=3, store=True)  # type: ignore[arg-type]

    assert client.responses.retrieve(response.id).model == response.model == "scripted"
    assert client.chat.completions.retrieve(chat.id).model == "scripted"


def test_a_job_is_the_true_models_and_its_stream_too(routed: Stack) -> None:
    headers = {"idempotency-key": "of-a-route"}
    body = {"model": "coder", "messages": HELLO, "max_tokens": 3}

    first, again = routed.post(body, headers=headers), routed.post(body, headers=headers)

    job_id = first.headers["x-penstock-job-id"]
    assert (again.headers["x-penstock-job-id"], again.json()) == (job_id, first.json())
    assert httpx.get(f"{routed.base}/v1/jobs/{job_id}").json()["model"] == "scripted"
    resumed = httpx.get(f"{routed.base}/v1/jobs/{job_id}/events")
    assert (resumed.headers["x-penstock-model"], '"model":"scripted"' in resumed.text) == ("scripted", True)


def test_names_are_listed_with_what_they_stand_for(routed: Stack) -> None:
    found = listed(routed)

    assert found["gpt-4o"]["stands_for"] == found["coder"]["stands_for"] == ["scripted"]
    assert (found["gpt-4o"]["spill_after_s"], found["coder"]["spill_after_s"]) == (None, 30)
    assert "stands_for" not in found["scripted"]
    assert routed.client().models.retrieve("coder").id == "coder"


def test_an_unknown_name_is_told_the_nearest(routed: Stack) -> None:
    for refused in (
        lambda: routed.client().chat.completions.create(model="codr", messages=HELLO),  # type: ignore[arg-type]
        lambda: routed.client().models.retrieve("codr"),
    ):
        with pytest.raises(openai.NotFoundError, match="Did you mean 'coder'") as error:
            refused()
        assert error.value.code == "model_not_found"
