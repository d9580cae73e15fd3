"""`service_tier` names the class in which a request was served, in OpenAI's words, in every kind of answer."""

import json
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Stack
from tests.e2e.test_faults import ask

BODY: dict[str, Any] = {"model": "scripted", "messages": ask("hi"), "max_tokens": 3}
BATCH = {"x-penstock-priority": "batch"}


@pytest.mark.parametrize(
    ("asked", "headers", "tier"),
    [
        ({}, {}, "default"),
        ({"service_tier": "auto"}, {}, "default"),
        ({"service_tier": "default"}, {}, "default"),
        ({"service_tier": "flex"}, {}, "flex"),
        ({"service_tier": "priority"}, {}, "priority"),
        ({"service_tier": "priority"}, BATCH, "flex"),
    ],
)
def test_chats_name_it_whole_and_in_each_chunk(
    scripted: Stack, asked: dict[str, Any], headers: dict[str, str], tier: str
) -> None:
    client = scripted.client()

    whole = client.chat.completions.create(**BODY, **asked, extra_headers=headers)
    chunks = list(client.chat.completions.create(**BODY, **asked, extra_headers=headers, stream=True))

    assert whole.service_tier == tier
    assert {chunk.service_tier for chunk in chunks} == {tier}


def test_a_stream_that_is_picked_up_and_a_stored_chat_name_it_again(scripted: Stack) -> None:
    client = scripted.client()
    job_id = client.chat.completions.create(**BODY, service_tier="flex", store=True).id

    headers = {"authorization": f"Bearer {client.api_key}"}
    events = httpx.get(f"{scripted.base}/v1/jobs/{job_id}/events", headers=headers, timeout=30).text
    stored = client.chat.completions.retrieve(job_id)

    frames = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    assert {frame["service_tier"] for frame in frames} == {"flex"}
    assert stored.service_tier == "flex"


@pytest.mark.parametrize(("asked", "tier"), [({}, "default"), ({"service_tier": "flex"}, "flex")])
def test_responses_name_it_now_and_later(scripted: Stack, asked: dict[str, Any], tier: str) -> None:
    client = scripted.client()

    made = client.responses.create(model="scripted", input="hi", max_output_tokens=16, **asked)

    assert made.service_tier == tier
    assert client.responses.retrieve(made.id).service_tier == tier


def test_text_completions_name_none_as_openais_do(scripted: Stack) -> None:
    made = scripted.client().completions.create(model="scripted", prompt="hi", max_tokens=3)

    assert "service_tier" not in made.model_dump(exclude_unset=True)
