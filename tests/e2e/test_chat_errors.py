"""Chat requests that are refused or fail: each has its error code, and none ends cleanly."""

from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack
from tests.e2e.test_chat_completions import ask


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"response_format": {"type": "json_object"}}, "response_format"),  # the scripted engine has no grammars
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"50000": 1}}, "logit_bias"),
        ({"stop_token_ids": [50_000]}, "stop_token_ids"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 2}, "min_p"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"messages": [*ask("hi"), {"role": "assistant", "content": "so", "prefix": True}]}, "messages.prefix"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.content"),
    ],
)
def test_a_bad_or_unsupported_parameter_is_named(scripted: Stack, change: dict[str, Any], param: str) -> None:
    response = scripted.post({"model": "scripted", "messages": ask("hi"), **change})

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[0] in error["message"]


def test_neutral_values_of_unsupported_parameters_are_accepted(scripted: Stack) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "tools": None, "user": "u"}

    response = scripted.post({"model": "scripted", "messages": ask("hi"), "max_tokens": 1, **neutral})

    assert response.status_code == 200


def test_an_unknown_model_is_404_by_name(scripted: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        scripted.client().chat.completions.create(model="nobody", messages=ask("hi"))

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_does_not_fit_is_400_even_when_streaming(builtin: Stack, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        builtin.client().chat.completions.create(
            model=BUILTIN, messages=ask("word " * 3000), max_tokens=5, stream=stream
        )

    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nowhere", 404, "not_found"), ("PUT", "/v1/chat/completions", 405, "method_not_allowed")],
)
def test_every_error_has_the_one_shape(scripted: Stack, method: str, path: str, status: int, code: str) -> None:
    response = httpx.request(method, scripted.base + path)

    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


def test_bodies_that_are_no_request_are_refused(scripted: Stack) -> None:
    url = f"{scripted.base}/v1/chat/completions"
    json_type = {"content-type": "application/json"}

    broken = httpx.post(url, content=b'{"model": ', headers=json_type)
    large = httpx.post(url, content=b'{"model": "' + b"x" * 4_100_000 + b'"}', headers=json_type)
    growing = httpx.post(url, content=(b"x" * 1_000_000 for _ in range(6)), headers=json_type)

    assert broken.status_code == 400
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    assert growing.status_code == 413


def test_an_engine_failure_ends_a_stream_with_an_error_and_no_clean_end(scripted: Stack) -> None:
    stream = scripted.client().chat.completions.create(
        model="scripted", messages=ask("please fault:raise@5"), max_tokens=20, stream=True
    )
    read = []
    with pytest.raises(openai.APIError) as caught:
        read += list(stream)

    assert caught.value.code == "engine_error"
    body = {"model": "scripted", "messages": ask("please fault:raise@5"), "max_tokens": 20, "stream": True}
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("POST", f"{scripted.base}/v1/chat/completions", json=body) as response,
    ):
        response.read()


def test_an_early_failure_is_still_an_http_status(scripted: Stack) -> None:
    response = scripted.post({"model": "scripted", "messages": ask("fault:raise@0"), "stream": True})

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_error"
