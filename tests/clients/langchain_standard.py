"""LangChain's own tests of a chat model, run by pytest in the environment of the clients. PENSTOCK_BASE is the API."""

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

# These need a model that reads numbers and names which the built-in one was not taught.
BEYOND_THE_MODEL = (
    "test_json_mode",
    "test_tool_calling",
    "test_tool_calling_async",
    "test_tool_calling_with_no_arguments",
    "test_unicode_tool_call_integration",
)


@pytest.fixture(autouse=True)
def expect(request: pytest.FixtureRequest) -> None:
    if request.function.__name__ in BEYOND_THE_MODEL:
        request.applymarker(pytest.mark.xfail(strict=True, reason="the built-in model does not know better"))


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"base_url": os.environ["PENSTOCK_BASE"], "api_key": "none"}
        return {"model": "penstock-tiny", "temperature": 0, "stream_usage": True, **where}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "penstock-tiny"


class TestResponses(TestChat):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}
