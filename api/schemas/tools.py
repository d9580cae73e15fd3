"""Tools that a chat may call, and how the answers come back."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import Items, Strict
from shared.domain.errors import InvalidRequest

TOOLS_MAX = 128
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class FunctionDefinition(Strict):
    """`strict` calls keep to `parameters`, a JSON schema; the others as well as the model can."""

    name: str = Field(pattern=NAME)
    """The function's name."""
    description: str | None = None
    """What the function does, for the model to read."""
    parameters: dict[str, Any] | None = None
    """The function's arguments, as a JSON schema."""
    strict: bool | None = None
    """Hold the model's arguments to the schema."""


class Tool(Strict):
    type: Literal["function"]
    """Always `function`."""
    function: FunctionDefinition
    """The function that may be called."""


class FunctionName(Strict):
    name: str = Field(pattern=NAME)
    """The function's name."""


class NamedTool(Strict):
    type: Literal["function"]
    """Always `function`."""
    function: FunctionName
    """The function that is meant."""


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    """`auto` lets the model decide whether it calls; `required` makes it call."""
    tools: Annotated[list[NamedTool], Items(TOOLS_MAX, least=1)]
    """Those of `tools` that may be called."""


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    """Always `allowed_tools`."""
    allowed_tools: AllowedTools
    """Which functions may be called."""


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)
Tools = Annotated[list[Tool], Items(TOOLS_MAX)]


class CalledFunction(Strict):
    """`arguments`: JSON, as the model wrote it."""

    name: str = Field(min_length=1, max_length=256)
    """The function's name."""
    arguments: str
    """The arguments as JSON, as the model wrote them."""


class ToolCall(Strict):
    id: str = Field(min_length=1, max_length=256)
    """The call's id, which its answer names."""
    type: Literal["function"] = "function"
    """Always `function`."""
    function: CalledFunction
    """What was called, and with which arguments."""


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
