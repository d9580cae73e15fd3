"""Chat completions by the openai client, streaming and not, of the built-in model and the scripted engine."""

import asyncio
import re
import time
from typing import Annotated, Any

import httpx
import pydantic
import pytest

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, text_of

STORY: Any = [{"role": "user", "content": "Tell me a story about a fox."}]


def ask(content: str) -> Any:
    return [{"role": "user", "content": content}]


def whole(stack: Stack, messages: Any, **options: Any) -> str:
    answer = stack.client().chat.completions.create(model=BUILTIN, messages=messages, **options)
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello!", "Hello!"),
        ("你好", "你好"),
        ("What is 7 + 5?", "12"),
        ("Count from 1 to 5.", "1, 2, 3, 4, 5"),
        ("What day comes after Monday?", "Tuesday"),
        ("What is the capital of France?", "Paris"),
        ("Spell house.", "H-O-U-S-E"),
    ],
)
def test_the_built_in_model_answers(builtin: Stack, question: str, answer: str) -> None:
    assert answer in whole(builtin, ask(question), temperature=0)


def test_streaming_and_whole_text_are_equal_at_temperature_0(builtin: Stack) -> None:
    for content in ("Tell me a story about a fox.", "讲一个故事", "Count to 20.", "Spell the word zebra."):
        stream = builtin.client().chat.completions.create(
            model=BUILTIN, messages=ask(content), temperature=0, stream=True
        )

        assert text_of(stream) == whole(builtin, ask(content), temperature=0)


@pytest.mark.alone
def test_deltas_arrive_while_generation_runs(scripted: Stack) -> None:
    began = time.monotonic()
    arrivals = []
    stream = scripted.client().chat.completions.create(
        model="scripted", messages=ask("hi"), max_tokens=100, stream=True
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            arrivals.append(time.monotonic() - began)

    assert len(arrivals) > 50
    assert arrivals[0] < arrivals[-1] / 3


def test_64_concurrent_streams_complete_alike(builtin: Stack) -> None:
    async def all_at_once() -> list[str]:
        async with builtin.async_client() as client:

            async def one() -> str:
                stream: Any = await client.chat.completions.create(
                    model=BUILTIN,
                    messages=STORY,
                    temperature=0,
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*[one() for _ in range(64)]))

    texts = asyncio.run(all_at_once())

    assert set(texts) == {whole(builtin, STORY, temperature=0)}


def test_a_seed_reproduces_and_seeds_differ(builtin: Stack) -> None:
    def drawn(seed: int) -> str:
        return whole(builtin, ask("Tell me a story."), temperature=1.2, top_p=0.95, seed=seed)

    texts = {seed: drawn(seed) for seed in range(4)}

    assert {seed: drawn(seed) for seed in range(4)} == texts
    assert len(set(texts.values())) > 1


def test_choices_differ_and_interleave(scripted: Stack) -> None:
    stream = scripted.client().chat.completions.create(
        model="scripted", messages=ask("hi"), n=3, max_tokens=8, seed=5, temperature=1, stream=True
    )
    texts, order, reasons = ["", "", ""], [], {}
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    answer = scripted.client().chat.completions.create(
        model="scripted", messages=ask("hi"), n=3, max_tokens=8, seed=5, temperature=1
    )

    assert [choice.message.content for choice in answer.choices] == texts
    assert len(set(texts)) == 3
    assert order != sorted(order)
    assert reasons == {0: "length", 1: "length", 2: "length"}
    assert answer.usage
    assert answer.usage.completion_tokens == 24


def test_a_stop_string_ends_the_text_before_it(builtin: Stack) -> None:
    full = whole(builtin, ask("Count to 9."), temperature=0)
    stream = builtin.client().chat.completions.create(
        model=BUILTIN, messages=ask("Count to 9."), temperature=0, stop=[", 6", "nowhere"], stream=True
    )
    chunks = list(stream)

    assert text_of(chunks) == full.split(", 6")[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_max_tokens_ends_with_length(builtin: Stack) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = builtin.client().chat.completions.create(model=BUILTIN, messages=STORY, **limit)  # type: ignore[call-overload]
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_frames_are_openais(scripted: Stack) -> None:
    response = scripted.post(
        {
            "model": "scripted",
            "messages": ask("hi"),
            "max_tokens": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    frames = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    bodies = [httpx.Response(200, text=frame).json() for frame in frames[:-1]]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    assert "event:" not in response.text
    assert frames[-1] == "[DONE]"
    assert {body["object"] for body in bodies} == {"chat.completion.chunk"}
    assert len({(body["id"], body["created"], body["model"], body["system_fingerprint"]) for body in bodies}) == 1
    deltas = [body["choices"][0]["delta"] for body in bodies[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["content"] == ""
    assert deltas[-1] == {}
    assert bodies[-2]["choices"][0]["finish_reason"] == "length"
    assert bodies[-1]["choices"] == []
    assert bodies[-1]["usage"]["completion_tokens"] == 2
    assert all(body["usage"] is None for body in bodies[:-1])


def test_penalties_biases_and_lengths_change_the_answer(builtin: Stack) -> None:
    def answer(content: str = "Count to 9.", **options: Any) -> Any:
        body = {"model": BUILTIN, "messages": ask(content), "temperature": 0, **options}
        return builtin.post(body).json()["choices"][0]

    plain = answer()

    assert plain["finish_reason"] == "stop"
    assert answer(presence_penalty=0, repetition_penalty=1, min_p=0) == plain
    for option in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 5}):
        story = STORY[0]["content"]
        assert answer(story, **option)["message"] != answer(story)["message"]
    longer = answer(min_tokens=60, max_tokens=60)
    assert longer["finish_reason"] == "length"
    assert longer["message"]["content"].startswith(plain["message"]["content"])
    assert answer(ignore_eos=True, max_tokens=60)["finish_reason"] == "length"


class City(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=12)]
    population: Annotated[int, pydantic.Field(ge=0, le=99)]


def test_parse_gives_objects_of_the_schema(builtin: Stack) -> None:
    message = (
        builtin.client()
        .chat.completions.parse(model=BUILTIN, messages=STORY, response_format=City, temperature=0, max_tokens=500)
        .choices[0]
        .message
    )

    assert isinstance(message.parsed, City)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"choice": ["red", "深蓝"]}, "red|深蓝"),
        ({"regex": "[0-9]{2}:[0-9]{2}"}, "[0-9]{2}:[0-9]{2}"),
        ({"grammar": 'start: "(" /[xyz]{2}/ ")"'}, r"\([xyz]{2}\)"),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}}, r"\s*\[[^\]]*\]"),
    ],
)
def test_structured_outputs_of_every_kind_streaming_and_whole(builtin: Stack, form: Any, pattern: str) -> None:
    asked = {"model": BUILTIN, "messages": ask("Hello!"), "temperature": 0, "max_tokens": 300}

    text = builtin.post(asked | {"structured_outputs": form}).json()["choices"][0]["message"]["content"]
    stream = builtin.client().chat.completions.create(**asked, stream=True, extra_body={"structured_outputs": form})

    assert re.fullmatch(pattern, text)
    assert text_of(stream) == text


def test_a_schema_that_cannot_be_used_is_400_by_name(builtin: Stack) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}

    response = builtin.post({"model": BUILTIN, "messages": ask("hi"), "response_format": form})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize("content", ["Hello!", "你好", "Spell house."])
def test_logprobs_name_every_token_of_the_text_streaming_and_whole(builtin: Stack, content: str) -> None:
    asked: Any = {"model": BUILTIN, "messages": ask(content), "temperature": 0, "logprobs": True, "top_logprobs": 3}

    (choice,) = builtin.client().chat.completions.create(**asked).choices
    chunks = list(builtin.client().chat.completions.create(**asked, stream=True))

    content_logprobs = choice.logprobs and choice.logprobs.content
    assert content_logprobs
    assert b"".join(bytes(each.bytes or []) for each in content_logprobs).decode() == choice.message.content
    for each in content_logprobs:
        assert each.logprob <= 0
        assert len(each.top_logprobs) == 3
        assert (each.token, each.logprob) == (each.top_logprobs[0].token, each.top_logprobs[0].logprob)
    streamed = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    flat = [each for logprobs in streamed for each in logprobs.content or []]
    assert [(each.token, each.bytes) for each in flat] == [(each.token, each.bytes) for each in content_logprobs]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content


def test_a_clients_own_objects_may_be_sent_back(builtin: Stack) -> None:
    """The fields are those of the openai client's parse helpers, of LiteLLM's and OpenRouter's answers."""
    call = {"id": "c1", "type": "function", "index": 0, "provider_specific_fields": None}
    function = {"name": "sum", "arguments": "{}", "parsed_arguments": {}}
    said = {"id": "m1", "parsed": {"a": 1}, "annotations": [{"type": "url_citation"}], "cache_control": {"type": "x"}}
    more = {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}], "prefix": False}
    nothing = {"audio": None, "function_call": None, "refusal": None, "provider_specific_fields": {"a": 1}}
    history = [
        *ask("hi"),
        {
            "role": "assistant",
            "content": None,
            **said,
            **more,
            **nothing,
            "tool_calls": [{**call, "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    ]

    answer = builtin.post({"model": BUILTIN, "messages": history, "max_tokens": 4})

    assert answer.status_code == 200, answer.text


def test_a_top_p_of_0_always_takes_the_likeliest(builtin: Stack) -> None:
    greedy = whole(builtin, ask("hi"), temperature=0, max_tokens=30)

    assert whole(builtin, ask("hi"), temperature=1.5, top_p=0, max_tokens=30) == greedy


@pytest.mark.parametrize("max_tokens", [-1, 32_000])
def test_a_limit_beyond_the_context_is_lowered_to_what_fits(builtin: Stack, max_tokens: int) -> None:
    answer = builtin.post({"model": BUILTIN, "messages": ask("hi"), "max_tokens": max_tokens, "temperature": 0})

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_null_when_nobody_asks(builtin: Stack) -> None:
    answer = builtin.post({"model": BUILTIN, "messages": ask("Hello!"), "temperature": 0}).json()

    assert answer["choices"][0]["logprobs"] is None


def test_the_next_turn_of_a_chat_pays_only_for_what_is_new(builtin: Stack) -> None:
    def turn(messages: Any, **options: Any) -> Any:
        body = {"model": BUILTIN, "messages": messages, "temperature": 0, **options}
        return builtin.post(body).json()

    messages = ask("Tell me a story about a whale. " * 8)
    first = turn(messages)
    second = [*messages, first["choices"][0]["message"], *ask("Thank you!")]

    cached = turn(second)["usage"]["prompt_tokens_details"]["cached_tokens"]

    prompt = first["usage"]["prompt_tokens"]
    assert prompt - 16 <= cached <= prompt + first["usage"]["completion_tokens"]
    assert turn(second, cache_salt="another tenant")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert turn(second)["choices"][0]["message"] == turn(second, cache_salt="a third")["choices"][0]["message"]


def test_nobody_learns_from_the_cache_what_another_tenant_has_asked(builtin: Stack) -> None:
    messages = ask("The secret of team a is that the whale is blue. " * 4)

    def cached(key: str) -> int:
        body = {"model": BUILTIN, "messages": messages, "max_tokens": 1}
        usage = builtin.post(body, headers={"authorization": f"Bearer {key}"}).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("team-a") == 0

    assert cached("team-b") == 0
    assert cached("team-a") > 16


def test_models_are_listed_with_what_they_can_do(builtin: Stack) -> None:
    client = builtin.client()

    assert BUILTIN in [model.id for model in client.models.list()]
    model = client.models.retrieve(BUILTIN).model_dump()
    assert model["context_length"] == 2048
    assert model["capabilities"] == ["chat", "completions", "tools", "structured_outputs", "embeddings", "rerank"]
    assert model["engine"] == "batched"
    assert model["workers"] >= 1


def test_health_and_metrics_tell_the_truth(scripted: Stack) -> None:
    scripted.post({"model": "scripted", "messages": ask("hi"), "max_tokens": 2})

    assert httpx.get(f"{scripted.base}/health/live").status_code == 200
    assert httpx.get(f"{scripted.base}/health/ready").status_code == 200
    page = httpx.get(f"{scripted.base}/metrics").text
    assert 'penstock_http_requests_total{route="/v1/chat/completions",status="200"}' in page


@pytest.mark.parametrize(("origin", "status"), [("http://localhost:3000", 200), ("https://chat.example", 403)])
def test_without_keys_pages_of_this_machine_may_call(scripted: Stack, origin: str, status: int) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}

    response = httpx.options(f"{scripted.base}/v1/chat/completions", headers=asked)

    assert response.status_code == status
    assert response.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
