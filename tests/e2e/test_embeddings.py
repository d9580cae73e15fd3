"""Embeddings by the openai client, also across the death of a worker."""

import math
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, eventually, running_stack

TEXTS = ["Hello!", "What is the capital of France?", "hello", "x"]


def embed(stack: Stack, model: str, texts: Any, **options: Any) -> Any:
    return stack.client().embeddings.create(model=model, input=texts, **options)


def post(stack: Stack, **body: Any) -> httpx.Response:
    return httpx.post(f"{stack.base}/v1/embeddings", json={"model": BUILTIN, "input": "a"} | body, timeout=60)


def test_each_input_has_its_vector_in_order(builtin: Stack) -> None:
    answer = embed(builtin, BUILTIN, TEXTS)

    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert all(math.isclose(math.hypot(*item.embedding), 1, rel_tol=1e-5) for item in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    for text, item in zip(TEXTS, answer.data, strict=True):
        assert embed(builtin, BUILTIN, text).data[0].embedding == pytest.approx(item.embedding, abs=1e-6)


def test_floats_and_base64_are_the_same_numbers(builtin: Stack) -> None:
    as_floats = embed(builtin, BUILTIN, "Hello!", encoding_format="float").data[0].embedding

    assert embed(builtin, BUILTIN, "Hello!").data[0].embedding == as_floats  # the client asks for base64 on its own


def test_token_ids_are_inputs_too(builtin: Stack) -> None:
    one, two = (embed(builtin, BUILTIN, ids).data for ids in ([5, 6, 7], [[5, 6, 7], [8]]))

    assert (len(one), len(two)) == (1, 2)
    assert one[0].embedding == pytest.approx(two[0].embedding, abs=1e-6)


def test_dimensions(builtin: Stack) -> None:
    short = embed(builtin, BUILTIN, "Hello!", dimensions=8).data[0].embedding
    whole = embed(builtin, BUILTIN, "Hello!").data[0].embedding

    length = math.hypot(*whole[:8])
    assert short == pytest.approx([x / length for x in whole[:8]], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [[-1]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1_000_000]}, "input"),
        ({"input": "word " * 5000}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 100_000}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input_type": "query"}, "input_type"),
    ],
)
def test_bad_input_is_refused_by_name(builtin: Stack, body: dict[str, Any], param: str) -> None:
    answer = post(builtin, **body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_long_text_is_cut_on_request(builtin: Stack) -> None:
    assert (
        embed(builtin, BUILTIN, "word " * 5000, extra_body={"truncate_prompt_tokens": 100}).usage.prompt_tokens == 100
    )


def test_answers_and_vectors_come_from_the_same_model_at_once(builtin: Stack) -> None:
    client = builtin.client()
    chat = client.chat.completions.create(
        model=BUILTIN, messages=[{"role": "user", "content": "Tell me a story about a fox."}], stream=True
    )
    first = next(iter(chat))
    vectors = embed(builtin, BUILTIN, TEXTS)

    assert first.choices[0].delta.role == "assistant"
    assert len(vectors.data) == 4
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat if chunk.choices)


def test_one_bad_input_fails_its_own_job_only(scripted: Stack) -> None:
    good: list[Any] = []
    thread = threading.Thread(target=lambda: good.append(embed(scripted, "scripted", ["a b"] * 50)))
    thread.start()
    with pytest.raises(openai.InternalServerError, match="asked for this fault"):
        embed(scripted, "scripted", ["fine", "fault:raise@0", "fine"])
    thread.join()

    assert len(good[0].data) == 50


def test_a_killed_worker_costs_no_vector(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    settings = {"scripted_step_ms": 20, "batch_tokens_max": 8}
    with running_stack(tmp_path, own_redis, "scripted", workers=2, **settings) as stack:
        texts = [f"text {i}" for i in range(400)]
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(embed(stack, "scripted", texts)))
        thread.start()
        [log] = eventually("some vectors", lambda: list(stack.redis.scan_iter("penstock:log:*")))
        eventually("half of the vectors", lambda: int(stack.redis.llen(log) or 0) > 200)
        next(worker for worker in stack.workers if stack.worker_running(worker)).kill()
        thread.join()

        assert [item.index for item in answers[0].data] == list(range(400))
        assert answers[0].data == embed(stack, "scripted", texts).data
