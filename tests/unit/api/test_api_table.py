"""The documentation of parameters matches the code, and covers all that the client can send."""

import subprocess
import sys
from typing import Any

import pytest
from openai.types import batch_create_params, completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from api.schemas.batch import BatchRequest
from api.schemas.chat import ChatCompletionRequest
from api.schemas.completion import CompletionRequest
from api.schemas.embedding import EmbeddingRequest
from api.schemas.response import ResponseRequest
from tests.conftest import ROOT

CLIENTS: list[tuple[Any, type[BaseModel]]] = [
    (chat_create_params.CompletionCreateParamsStreaming, ChatCompletionRequest),
    (completion_create_params.CompletionCreateParamsStreaming, CompletionRequest),
    (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
    (response_create_params.ResponseCreateParamsStreaming, ResponseRequest),
    (batch_create_params.BatchCreateParams, BatchRequest),
]


def test_the_documentation_is_made_from_this_code() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "tools.api_table"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert (ROOT / "docs" / "api.md").read_text() == made.stdout


@pytest.mark.parametrize(("params", "model"), CLIENTS, ids=lambda each: each.__name__)
def test_every_parameter_that_the_client_types_is_known_by_name(params: Any, model: type[BaseModel]) -> None:
    sent = {name for base in params.__mro__ for name in getattr(base, "__annotations__", {})}
    known = {field.alias or name for name, field in model.model_fields.items()} | set(getattr(model, "NEUTRAL", ()))

    assert sent - known == set()
