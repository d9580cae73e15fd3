"""The tools that a chat may call, and the calls of earlier answers."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import Items, Strict
from shared.domain.errors import InvalidRequest

TOOLS_MAX = 128
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
NAMESPACE = r"^[a-zA-Z0-9_.-]{1,128}$"


class FunctionDefinition(Strict):
    """A function. Calls of a `strict` function always follow `parameters`; other calls as well as the model can."""

    name: str = Field(pattern=NAME)
    """The function's name."""
    description: str | None = None
    """A description of the function for the model."""
    parameters: dict[str, Any] | None = None
    """The function's arguments, as a JSON schema."""
    strict: bool | None = None
    """Whether the model's arguments must follow the schema."""


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
    """The function to call."""


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    """`auto` lets the model decide whether to call a function; `required` forces a call."""
    tools: Annotated[list[NamedTool], Items(TOOLS_MAX, least=1)]
    """The functions among `tools` that may be called."""


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    """Always `allowed_tools`."""
    allowed_tools: AllowedTools
    """The functions that may be called."""


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)
Tools = Annotated[list[Tool], Items(TOOLS_MAX)]


class CalledFunction(Strict):
    """A call of a function. `arguments` is the JSON text that the model wrote."""

    name: str = Field(min_length=1, max_length=256)
    """The function's name."""
    arguments: str
    """The arguments as JSON, as the model wrote them."""
    parsed_arguments: Any = Field(None, exclude=True)
    """Accepted: what the openai client parsed from the arguments of an earlier answer."""


class ToolCall(Strict):
    id: str = Field(min_length=1, max_length=256)
    """The call's id, which the message with its result names."""
    type: Literal["function"] = "function"
    """Always `function`."""
    function: CalledFunction
    """The called function and its arguments."""
    index: int | None = Field(None, exclude=True)
    """Accepted: the call's place in an earlier streamed answer."""
    provider_specific_fields: Any = None
    """Fields that LiteLLM adds to answers, for a model behind a server that reads them."""


def tools_request(tools: Tools | None, choice: ToolChoice | None, parallel: bool | None) -> dict[str, Any]:
    """Return the part of a job's request that describes tools; empty when none may be called. Raises InvalidRequest."""
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
    return {"tools": kept, "tool_choice": mode, "parallel": parallel is not False, "closed": True}
