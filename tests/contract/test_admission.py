"""Admission of jobs while Redis forgets the list of models."""

from typing import Any

import pytest
from redis.asyncio import Redis

from api.http.auth import Caller
from api.http.request_options import RequestOptions
from api.serving.admission import Admission
from api.serving.model_router import KNOWN_FOR_S, MISSED_FOR_S
from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import ContextLengthExceeded, NotFound
from shared.domain.job import Job, Kind, ModelInfo
from shared.settings import load_settings
from tests.factories import model_router

TERMS = RequestOptions(caller=Caller("t"))


async def test_a_model_outlives_a_flush_until_its_workers_speak_again(client: Redis) -> None:
    now = [1000.0]
    directory = ModelRegistry(client)
    admission = Admission(model_router(client, clock=lambda: now[0]), load_settings(), clock=lambda: now[0])
    with pytest.raises(NotFound):
        await completion(admission)
    await directory.announce(ModelInfo(name="m", engine="scripted", context_length=9, created_s=0))
    await completion(admission)

    await client.flushdb()
    now[0] += KNOWN_FOR_S + 1
    job = await completion(admission)
    now[0] += MISSED_FOR_S

    assert job.model == "m"
    with pytest.raises(NotFound):
        await completion(admission)


async def completion(admission: Admission, prompt: Any = "x") -> Job:
    return await admission.job("cmpl", "m", Kind.COMPLETION, TERMS, request={"prompts": [prompt]})


async def test_a_prompt_that_cannot_fit_is_refused_before_any_worker_looks_at_it(client: Redis) -> None:
    directory = ModelRegistry(client)
    admission = Admission(model_router(client), load_settings())
    of_ten = ModelInfo(name="m", engine="scripted", context_length=10, created_s=0, prompt_chars_max=60)
    await directory.announce(of_ten)
    chat = {"messages": [{"role": "user", "content": "x" * 31}, {"role": "user", "content": "x" * 30}]}

    for request, param in (("x" * 61, "prompt"), ([0] * 11, "prompt")):
        with pytest.raises(ContextLengthExceeded) as refused:
            await completion(admission, request)
        assert refused.value.param == param
    with pytest.raises(ContextLengthExceeded, match="messages"):
        await admission.job("chatcmpl", "m", Kind.CHAT, TERMS, request=chat)
    assert await completion(admission, "x" * 60)
