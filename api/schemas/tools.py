"""Tools that a chat may call, and how the answers come back."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import Items, Strict
from shared.errors import InvalidRequest

TOOLS_MAX = 128
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class FunctionDefinition(Strict):
    """`strict` calls keep to `parameters`, a JSON schema; the others as well as the model can."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Strict):
    name: str = Field(pattern=NAME)


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Items(TOOLS_MAX, least=1)]


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)
Tools = Annotated[list[Tool], Items(TOOLS_MAX)]


class CalledFunction(Strict):
    """`arguments`: JSON, as the model wrote it."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str


class ToolCall(Strict):
    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


def tools_request(tools: Tools | None, choice: ToolChoice | None, parallel: bool | None) -> dict[str, Any]:
    """The part of a job's request that is about tools; empty when none may be called. Raises InvalidRequest."""
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise InvalidRequest("'tools' has two functions of the same name.", param="tools")
    allowed, mode = names, "auto"
    match choice:
        case str():
            mode = choice
        case NamedTool():
            allowed, mode = [choice.function.name], choice.function.name
        case AllowedToolsChoice():
            allowed, mode = [tool.function.name for tool in choice.allowed_tools.tools], choice.allowed_tools.mode
    if choice not in (None, "none", "auto") and not set(allowed) <= set(names):
        missing = sorted(set(allowed) - set(names))[0]
        raise InvalidRequest(f"'tool_choice' names '{missing}', which is not in 'tools'.", param="tool_choice")
    if mode == "required" and not names:
        raise InvalidRequest("'tool_choice' is 'required', but there are no 'tools'.", param="tool_choice")
    if mode == "none" or not names:
        return {}
    kept = [tool.model_dump(exclude_none=True) for tool in tools or () if tool.function.name in allowed]
    return {"tools": kept, "tool_choice": mode, "parallel": parallel is not False}
