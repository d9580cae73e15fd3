"""The model's capabilities say what a request may hold for the server behind it."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from api.http.auth import Caller
from api.http.request_options import RequestOptions
from api.schemas.base import EXTRA_MAX
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.tokens import TokenizeRequest
from api.serving.admission import Admission
from api.serving.moderation import Moderation
from api.serving.services import Services
from api.serving.submission import chat_submission, completion_submission, tokenize_submission
from shared.catalog.model_registry import ModelRegistry
from shared.domain.codec import decode_job, encode_job
from shared.domain.errors import InvalidRequest
from shared.domain.job import MEDIA_TOKENS, Job, ModelInfo
from shared.domain.suitability import require_taken
from shared.settings import load_settings
from tests.factories import model_router

OPTIONS = RequestOptions(caller=Caller("t"))
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000, "detail": "low"}}
TEXT = {"type": "text", "text": "what is this?"}
FORM = {"type": "json_schema", "json_schema": {"name": "mine", "schema": {"type": "array"}, "strict": True}}


ABOUT: dict[str, Any] = {"name": "m", "engine": "scripted", "context_length": 1000, "created_s": 0}
ABLE = ("images", "extra_parameters")


@pytest.fixture
async def services(client: Redis) -> AsyncIterator[Services]:
    """Two models: `plain` of an engine here, and `far` behind a server that takes everything."""
    registry = ModelRegistry(client)
    about: dict[str, Any] = {"engine": "scripted", "context_length": 1000, "created_s": 0}
    await registry.announce(ModelInfo(name="plain", **about, capabilities=("chat", "completions")))
    able = ("chat", "completions", "images", "extra_parameters")
    await registry.announce(ModelInfo(name="far", **about, capabilities=able))
    settings = load_settings()
    made = SimpleNamespace(
        admission=Admission(model_router(client), settings), settings=settings, moderation=Moderation(settings)
    )
    yield cast(Services, made)
    await made.moderation.close()


def chat(model: str, content: Any = "hello", **more: Any) -> ChatCompletionRequest:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    return ChatCompletionRequest.model_validate(body | more)


async def chat_job(services: Services, body: ChatCompletionRequest) -> Job:
    return (await chat_submission(services, body, OPTIONS)).job


async def test_fields_that_only_the_server_knows_reach_its_worker(services: Services) -> None:
    body = chat("far", enable_search=True, modalities=["text", "audio"], response_format=FORM)

    job = await chat_job(services, body)

    assert job.request["extra"] == {"enable_search": True, "modalities": ["text", "audio"], "response_format": FORM}
    assert decode_job(encode_job(job)) == job


async def test_a_completion_passes_them_on_too(services: Services) -> None:
    body = CompletionRequest.model_validate({"model": "far", "prompt": "x", "return_token_ids": True})

    assert (await completion_submission(services, body, OPTIONS)).job.request["extra"] == {"return_token_ids": True}


async def test_a_server_is_told_as_it_was_sent_what_it_may_understand_better(services: Services, client: Redis) -> None:
    await ModelRegistry(client).announce_absent([ModelInfo(**ABOUT | {"name": "cold", "engine": "unknown"})])
    sent = {"guided_json": {"type": "array"}, "enable_thinking": False, "verbosity": "low", "use_beam_search": False}

    far, plain, cold = [
        (await chat_job(services, chat(model, **sent, prediction={"type": "content"}))).request
        for model in ("far", "plain", "cold")
    ]

    assert far["extra"] == sent | {"prediction": {"type": "content"}}
    assert "extra" not in plain
    assert plain["reasons"] == ("enable_thinking", False)
    assert plain["verbosity"] == "low"
    assert "use_beam_search" not in cold["extra"]
    require_taken(cold, ModelInfo(**ABOUT, capabilities=("chat",)))


async def test_a_request_without_any_has_nothing_to_pass_on(services: Services) -> None:
    assert "extra" not in (await chat_job(services, chat("far", modalities=["text"]))).request


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"enable_search": True}, "Unknown parameter: 'enable_search'.", "enable_search"),
        ({"modalities": ["audio"]}, "The parameter 'modalities' is not supported here yet.", "modalities"),
    ],
)
async def test_all_other_models_refuse_them_by_name(services: Services, more: Any, message: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        await chat_job(services, chat("plain", **more))

    assert refused.value.param == param


async def test_an_image_reaches_a_model_that_sees(services: Services) -> None:
    job = await chat_job(services, chat("far", [TEXT, IMAGE]))

    assert job.request["messages"] == [{"role": "user", "content": [TEXT, IMAGE]}]
    assert MEDIA_TOKENS < job.prompt_tokens_estimate < MEDIA_TOKENS + 100  # not by the length of its text


@pytest.mark.parametrize(("model", "part"), [("plain", IMAGE), ("far", {"type": "input_audio", "input_audio": {}})])
async def test_a_model_that_cannot_take_a_part_refuses_it(services: Services, model: str, part: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"must not contain content of type '{part['type']}'") as refused:
        await chat_job(services, chat(model, [TEXT, part]))

    assert refused.value.param == "messages.content"


async def test_a_model_that_was_never_loaded_is_asked_for_anything_and_its_worker_refuses_what_it_lacks(
    services: Services, client: Redis
) -> None:
    unknown = ModelInfo(name="cold", engine="unknown", context_length=0, created_s=0)
    await ModelRegistry(client).announce_absent([unknown])

    image = await chat_job(services, chat("cold", [TEXT, IMAGE], response_format=FORM))
    extra = await chat_job(services, chat("cold", enable_search=True))

    plain, far = ModelInfo(**ABOUT, capabilities=("chat",)), ModelInfo(**ABOUT, capabilities=("chat", *ABLE))
    for job in (image, extra):
        require_taken(job.request, far)
    with pytest.raises(InvalidRequest, match="must not contain content of type 'image_url'"):
        require_taken(image.request, plain)
    with pytest.raises(InvalidRequest, match="Unknown parameter: 'enable_search'"):
        require_taken(extra.request, plain)
    require_taken((await chat_job(services, chat("cold", response_format=FORM))).request, plain)


async def test_an_image_is_no_text_whose_tokens_can_be_counted(services: Services) -> None:
    body = TokenizeRequest.model_validate({"model": "plain", "messages": [{"role": "user", "content": [TEXT, IMAGE]}]})

    with pytest.raises(InvalidRequest, match="must not contain content of type 'image_url'"):
        await tokenize_submission(services, body, OPTIONS)


async def test_text_in_parts_stays_one_text(services: Services) -> None:
    job = await chat_job(services, chat("far", [TEXT, TEXT]))

    assert job.request["messages"][0]["content"] == "what is this?what is this?"


def test_there_is_a_bound_to_unknown_fields() -> None:
    known = len(ChatCompletionRequest.model_fields)

    with pytest.raises(InvalidRequest, match="Unknown parameter: 'x0'"):
        chat("far", **{f"x{number}": 1 for number in range(known + EXTRA_MAX)})
