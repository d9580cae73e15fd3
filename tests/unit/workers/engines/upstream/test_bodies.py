"""The body of a request, as each provider takes it."""

import json
import re
from typing import Any

import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar, GrammarKind, Sampling
from tests.unit.workers.engines.upstream.conftest import asked
from workers.engines.upstream.chat_body import chat_body, completion_body, salted
from workers.engines.upstream.messages_body import messages_body
from workers.engines.upstream.providers import MEDIA, PROVIDERS, provider_at
from workers.engines.upstream.upstream import key_headers
from workers.source import ChatRequest, CompletionRequest, Resume, Said

NOTHING = Said()
EVERYTHING = Sampling(
    seed=7,
    temperature=0.5,
    top_p=0.9,
    top_k=4,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    logit_bias=((5, -1.0),),
    max_tokens=50,
    min_tokens=2,
    ignore_eos=True,
    stop=("a", "b", "c", "d", "e"),
    stop_token_ids=(3,),
    logprobs=2,
    seeded=True,
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "array"}', param="response_format")


def body_of(provider: str, request: ChatRequest, said: Said = NOTHING) -> dict[str, Any]:
    return chat_body(request, PROVIDERS[provider], "m", said)


def test_a_plain_chat_has_nothing_that_the_client_did_not_send() -> None:
    assert body_of("openai", asked()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_server_of_open_models_takes_every_parameter() -> None:
    body = body_of("vllm", asked(sampling=EVERYTHING, cache_salt="t/", template={"enable_thinking": False}))

    assert body | {"messages": None, "stream_options": None} == {
        "model": "m",
        "messages": None,
        "stream": True,
        "stream_options": None,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {"5": -1.0},
        "max_tokens": 50,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop": ["a", "b", "c", "d"],
        "stop_token_ids": [3],
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
        "cache_salt": salted("t/"),
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_what_a_provider_lacks_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match="'top_k' is not supported") as refused:
        body_of("openai", asked(sampling=Sampling(seed=1, top_k=3, seeded=False)))

    assert refused.value.param == "top_k"


def test_a_seed_that_the_client_did_not_send_is_not_sent_on() -> None:
    assert "seed" not in body_of("deepseek", asked())
    with pytest.raises(InvalidRequest, match="'seed'"):
        body_of("deepseek", asked(seeded=True))


def test_names_are_the_provider_s_own() -> None:
    sampling = Sampling(seed=7, max_tokens=9, seeded=True)

    assert body_of("openai", asked(sampling=sampling))["max_completion_tokens"] == 9
    assert body_of("mistral", asked(sampling=sampling))["random_seed"] == 7


def test_fields_that_only_the_provider_knows_pass_but_never_replace_ours() -> None:
    body = body_of("qwen", asked(extra={"enable_search": True, "model": "dearer", "stream": False}))

    assert body["enable_search"] is True
    assert (body["model"], body["stream"]) == ("m", True)


def test_parts_of_messages_pass_untouched() -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]

    assert body_of("openai", asked(messages=[{"role": "user", "content": parts}]))["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("provider", "choice", "sent"),
    [
        ("openai", "auto", "auto"),
        ("openai", "required", "required"),
        ("mistral", "required", "any"),
        ("openai", "f", {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_a_choice_of_tools_is_said_in_the_provider_s_words(provider: str, choice: str, sent: Any) -> None:
    body = body_of(provider, asked(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False))

    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TOOL], sent, False)


def test_a_forced_call_is_refused_where_none_can_be_forced() -> None:
    with pytest.raises(InvalidRequest, match="'tool_choice' must be 'auto'"):
        body_of("zhipu", asked(tools=[TOOL], tool_choice="required"))


def test_a_schema_is_a_response_format_unless_the_client_s_own_came() -> None:
    own = {"type": "json_schema", "json_schema": {"name": "mine", "schema": {"type": "array"}, "strict": True}}
    sampling = Sampling(seed=1, grammar=SCHEMA, seeded=False)

    made = body_of("openai", asked(sampling=sampling))["response_format"]
    sent = body_of("openai", asked(sampling=sampling, extra={"response_format": own}))["response_format"]

    assert made == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "array"}}}
    assert sent == own


def test_a_regex_goes_where_one_is_understood() -> None:
    sampling = Sampling(
        seed=1, seeded=False, grammar=Grammar(kind=GrammarKind.REGEX, text="a+", param="structured_outputs.regex")
    )

    assert body_of("vllm", asked(sampling=sampling))["structured_outputs"] == {"regex": "a+"}
    with pytest.raises(InvalidRequest, match=r"structured_outputs\.regex"):
        body_of("openai", asked(sampling=sampling))


@pytest.mark.parametrize("name", [name for name, each in PROVIDERS.items() if each.resume is Resume.PREFILL])
def test_each_that_continues_a_text_is_told_so_in_its_way(name: str) -> None:
    provider = PROVIDERS[name]
    body = body_of(name, asked(), Said(text="so far"))

    assert body["messages"][-1] == {"role": "assistant", "content": "so far"} | dict.fromkeys(provider.marks, True)
    assert all(body[field] is True for field in provider.continues)


def test_a_budget_is_shorter_by_what_was_said() -> None:
    sampling = Sampling(seed=1, max_tokens=50, seeded=False)

    assert body_of("vllm", asked(sampling=sampling), Said(text="x" * 80))["max_tokens"] == 30
    assert body_of("vllm", asked(sampling=sampling), Said(text="x" * 80, pieces=45))["max_tokens"] == 5


def test_a_completion_continues_its_prompt() -> None:
    request = CompletionRequest(
        job_id="j", model="ours", choice=0, sampling=Sampling(seed=1, logprobs=0, seeded=False), prompt="once"
    )

    body = completion_body(request, PROVIDERS["vllm"], "m", Said(text=" upon"))

    assert (body["prompt"], body["logprobs"]) == ("once upon", 0)


def test_a_chat_becomes_messages_of_anthropic() -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "t"},
    ]
    sampling = Sampling(seed=1, seeded=False, temperature=0.5, stop=("END",))
    request = asked(messages=messages, tools=[TOOL], tool_choice="f", parallel_tool_calls=False, sampling=sampling)

    body = messages_body(request, PROVIDERS["anthropic"], "claude", Said(text="so far "))

    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    assert body == {
        "model": "claude",
        "max_tokens": 4096,
        "stream": True,
        "system": "be brief",
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "source": source}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]},
            {"role": "assistant", "content": "so far"},
        ],
    }


def test_what_a_client_of_the_messages_api_asks_of_thinking_comes_to_anthropic() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    sampling = Sampling(seed=1, seeded=False, grammar=SCHEMA)

    body = messages_body(
        asked(thinking=thinking, reasoning_effort="high", sampling=sampling), PROVIDERS["anthropic"], "claude", NOTHING
    )
    plain = messages_body(asked(thinking={}), PROVIDERS["anthropic"], "claude", NOTHING)

    form = {"type": "json_schema", "schema": json.loads(SCHEMA.text)}
    assert (body["thinking"], body["output_config"]) == (thinking, {"effort": "high", "format": form})
    assert not {"thinking", "output_config"} & plain.keys()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"sampling": Sampling(seed=1, seeded=False, grammar=SCHEMA)}, "response_format"),
        ({"sampling": Sampling(seed=1, seeded=False, logprobs=0)}, "logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.content"),
    ],
)
def test_what_anthropic_does_not_take_is_refused_by_its_name(more: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages_body(asked(**more), PROVIDERS["anthropic"], "claude", NOTHING)

    assert refused.value.param == param


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com/openai/v1", "azure"),
        ("https://api.moonshot.ai/v1", "moonshot"),
        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "qwen"),
        ("http://localhost:8000/v1", "other"),
        ("https://notapi.openai.com.evil.example/v1", "other"),
    ],
)
def test_a_provider_is_known_by_its_host(url: str, name: str) -> None:
    assert provider_at(url).name == name


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("openai", {"authorization": "Bearer k"}),
        ("azure", {"api-key": "k"}),
        ("anthropic", {"x-api-key": "k", "anthropic-version": "2023-06-01"}),
    ],
)
def test_a_key_goes_into_the_header_of_its_provider(name: str, headers: dict[str, str]) -> None:
    assert key_headers(PROVIDERS[name], "k") == headers


def test_every_row_names_parameters_that_exist() -> None:
    sent = {"n", *Sampling.__dataclass_fields__, "response_format", *MEDIA}

    for provider in PROVIDERS.values():
        assert provider.lacks <= sent
        assert {name for name, _ in provider.names} <= sent
        assert not provider.url.endswith("/")
        assert (provider.resume is Resume.PREFILL) >= bool(provider.marks or provider.continues)


def test_a_salt_has_no_character_that_vllm_refuses_and_no_name_of_a_tenant() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", salted("key-1/mine@x"))
    assert salted("key-1/") != salted("key-2/")
