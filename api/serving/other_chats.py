"""Requests of other APIs, the Responses API and Anthropic's Messages API, become chats."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from api.http.problems import validation_problem
from api.schemas.chat import ChatCompletionRequest
from shared.domain.errors import InvalidRequest
from shared.settings import Settings

ABSENT = "These tools are not available here, whatever is said of them elsewhere: {}."


def valid_chat(wanted: Mapping[str, Any]) -> ChatCompletionRequest:
    """Return the chat with those parameters that are not None. Its request was valid by itself, but there may be too
    many messages or calls in it: raises InvalidRequest then."""
    try:
        return ChatCompletionRequest.model_validate(
            {name: value for name, value in wanted.items() if value is not None}
        )
    except ValidationError as error:
        problem = validation_problem(error)
        raise InvalidRequest(problem.message, param=problem.param) from None


def refuse_hosted(hosted: Sequence[str], settings: Settings) -> None:
    """Raise InvalidRequest if there are tools of types that would run on a server, and the setting refuses them."""
    if hosted and settings.hosted_tools == "refuse":
        message = f"'tools': this API runs no tools, and the type {hosted[0]} would run here."
        raise InvalidRequest(message, param="tools")


def said_of_absent(hosted: Sequence[str]) -> list[str]:
    """Return what the model is told of tools that would run on a server."""
    return [ABSENT.format(", ".join(hosted))] if hosted else []
