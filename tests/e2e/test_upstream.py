"""Other servers behind the queue: what clients read when these have no room, break off, or their worker dies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.upstreams import Fault, StandIn, counting, in_thread, openai_chat, token_server
from workers.loading.model_spec import BUILTIN as BUILTIN_FOLDER

WORDS = tuple(f" w{number}" for number in range(40))
WHOLE = "".join(WORDS)
ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[StandIn]]:
    with in_thread(openai_chat(WORDS)) as first, in_thread(openai_chat(WORDS)) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def stack(upstreams: list[StandIn], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = json.dumps({"urls": [each.url for each in upstreams], "provider": "vllm"})
    folder = tmp_path_factory.mktemp("upstream")
    with standalone_stack(folder, "m", workers=2, engine="upstream", engine_options=options) as stack:
        yield stack


@pytest.fixture(autouse=True)
def rested(upstreams: list[StandIn]) -> None:
    for each in upstreams:
        each.faults.clear()
        each.received.clear()
        each.left.clear()
        each.step_s = 0.0


def test_an_answer_is_relayed_with_the_usage_of_the_upstream(stack: Stack) -> None:
    stream = stack.client().chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == WHOLE
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 5)


def test_the_model_says_what_becomes_of_its_answers(stack: Stack) -> None:
    model = stack.client().models.retrieve("m")

    assert model.model_extra is not None
    assert (model.model_extra["engine"], model.model_extra["resume"]) == ("upstream", "prefill")
    assert {"chat", "completions", "tools", "images", "extra_parameters"} <= set(model.model_extra["capabilities"])


def test_a_busy_upstream_fails_no_job(stack: Stack, upstreams: list[StandIn]) -> None:
    for each in upstreams:
        each.faults += [Fault(status=429, headers={"retry-after-ms": "300"})] * 2

    answer = stack.client().chat.completions.create(**ASK)

    assert answer.choices[0].message.content == WHOLE


def test_an_upstream_that_breaks_off_is_followed_by_the_next(stack: Stack, upstreams: list[StandIn]) -> None:
    upstreams[0].faults.append(Fault(after=10))

    answer = stack.client().chat.completions.create(**ASK)

    assert answer.choices[0].message.content == WHOLE
    assert upstreams[1].bodies[0]["messages"][-1]["content"] == "".join(WORDS[:9])


def test_what_is_at_fault_is_told_the_client(stack: Stack, upstreams: list[StandIn]) -> None:
    body = {"error": {"message": "no such voice", "type": "invalid_request_error", "param": "voice"}}
    upstreams[0].faults.append(Fault(status=400, body=body))

    with pytest.raises(openai.BadRequestError, match="no such voice") as refused:
        stack.client().chat.completions.create(**ASK, extra_body={"voice": "loud"})

    assert refused.value.param == "voice"


def test_images_tools_and_unknown_fields_pass_untouched(stack: Stack, upstreams: list[StandIn]) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    content = [{"type": "text", "text": "look"}, image]
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [{"role": "user", "content": content}]

    stack.client().chat.completions.create(
        model="m",
        messages=messages,
        tools=[tool],
        extra_body={"enable_search": True},
    )

    (body,) = upstreams[0].bodies
    assert (body["messages"], body["tools"], body["enable_search"]) == (messages, [tool], True)


def test_who_leaves_closes_the_connection_to_the_upstream(stack: Stack, upstreams: list[StandIn]) -> None:
    upstreams[0].step_s = 0.05
    stream = stack.client().chat.completions.create(**ASK, stream=True)
    next(iter(stream))

    stream.close()

    assert upstreams[0].left.wait(5)


def test_a_killed_worker_s_answer_is_continued_by_another(stack: Stack, upstreams: list[StandIn]) -> None:
    upstreams[0].step_s = 0.05
    stream = stack.client().chat.completions.create(**ASK, stream=True)
    texts = [c.choices[0].delta.content or "" for _, c in zip(range(12), stream, strict=False)]

    _kill_owner(stack)
    texts += [c.choices[0].delta.content or "" for c in stream if c.choices]

    assert "".join(texts) == WHOLE


def _kill_owner(stack: Stack) -> None:
    """Kill the worker that runs the only job, and start another one."""
    owner = eventually("a busy worker", lambda: next(filter(stack.worker_running, stack.workers), None))
    owner.kill()
    stack.workers.remove(owner)
    stack.add_worker("m")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, StandIn]]:
    with in_thread(token_server(counting)) as server:
        options = json.dumps({"urls": server.url, "tokenizer": str(BUILTIN_FOLDER)})
        folder = tmp_path_factory.mktemp("tokens")
        with standalone_stack(folder, "m", workers=2, engine="upstream", engine_options=options) as stack:
            yield stack, server


def test_an_answer_in_tokens_is_continued_exactly(tokens: tuple[Stack, StandIn]) -> None:
    stack, server = tokens
    whole = stack.client().chat.completions.create(**ASK, max_tokens=50, temperature=0)
    server.step_s = 0.05
    server.faults += [Fault(after=20)]

    stream = stack.client().chat.completions.create(
        **ASK, max_tokens=50, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk for _, chunk in zip(range(10), stream, strict=False)]
    _kill_owner(stack)
    chunks += stream

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert stack.client().models.retrieve("m").model_extra["resume"] == "exact"  # type: ignore[index]


def test_restart_ends_the_stream_with_an_error_that_names_the_job(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with in_thread(openai_chat(WORDS)) as server:
        server.faults.append(Fault(after=10))
        server.step_s = 0.2
        options = json.dumps({"urls": server.url, "provider": "openai"})
        folder = tmp_path_factory.mktemp("restart")
        with standalone_stack(folder, "m", engine="upstream", engine_options=options) as stack:
            stream = stack.client().chat.completions.create(**ASK, stream=True)
            texts = []

            with pytest.raises(openai.APIError) as lost:
                texts += [chunk.choices[0].delta.content or "" for chunk in stream]

    assert lost.value.code == "upstream_lost"
    assert "chatcmpl-" in lost.value.message


def test_vectors_and_ranks_come_from_the_upstream(tmp_path: Path) -> None:
    vectors = lambda body: {"data": [{"index": at, "embedding": [3.0, 4.0]} for at in range(len(body["input"]))]}  # noqa: E731
    ranks = lambda body: {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}  # noqa: E731
    with in_thread(StandIn({}, answers={"/embeddings": vectors, "/rerank": ranks})) as server:
        options = json.dumps({"urls": server.url, "serves": ["embed", "rerank"]})
        with standalone_stack(tmp_path, "m", engine="upstream", engine_options=options) as stack:
            made = stack.client().embeddings.create(model="m", input=["a", "b"])
            ranked = httpx.post(f"{stack.base}/v1/rerank", json={"model": "m", "query": "q", "documents": ["a", "b"]})

    assert [each.embedding for each in made.data] == [pytest.approx([0.6, 0.8])] * 2
    assert [each["index"] for each in ranked.json()["results"]] == [1, 0]
