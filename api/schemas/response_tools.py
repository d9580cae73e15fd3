"""The tools of a response. Functions, custom tools, namespaces of both and the local shell are called by the model and
run by the client. Hosted tools would run on a server, and none does here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schemas.base import Items, Strict
from api.schemas.tools import NAME, NAMESPACE, TOOLS_MAX


class FunctionTool(Strict):
    type: Literal["function"]
    """Always `function`."""
    name: str = Field(pattern=NAME)
    """The function's name."""
    description: str | None = None
    """A description of the function for the model."""
    parameters: dict[str, Any] | None = None
    """The function's arguments, as a JSON schema."""
    strict: bool | None = None
    """Whether the model's arguments must follow the schema."""
    output_schema: dict[str, Any] | None = None
    """Accepted without effect: the form of the function's output."""
    defer_loading: Literal[False] | None = None
    """Only false is supported: all functions are shown to the model."""


class CustomFormat(Strict):
    """The form of a custom tool's input. `syntax` and `definition` belong to the type `grammar`."""

    type: Literal["text", "grammar"]
    """Any text (`text`), or a text of a grammar."""
    syntax: Literal["lark", "regex"] | None = None
    """The language of the grammar."""
    definition: str | None = Field(None, min_length=1, max_length=50_000)
    """The grammar, which the input keeps to. A model that another server computes is only told of it."""

    @model_validator(mode="after")
    def _a_grammar_when_named(self) -> "CustomFormat":
        if (self.type == "grammar") != (self.syntax is not None and self.definition is not None):
            raise ValueError("'syntax' and 'definition' are only allowed with the type grammar, which needs both")
        return self


class CustomTool(Strict):
    """A tool whose input is a text."""

    type: Literal["custom"]
    """Always `custom`."""
    name: str = Field(pattern=NAME)
    """The tool's name."""
    description: str | None = None
    """A description of the tool for the model."""
    format: CustomFormat | None = None
    """The form of the input. Default: any text."""
    defer_loading: Literal[False] | None = None
    """Only false is supported: all tools are shown to the model."""


class NamespaceTool(Strict):
    """Tools under a common name."""

    type: Literal["namespace"]
    """Always `namespace`."""
    name: str = Field(pattern=NAMESPACE)
    """The namespace, which calls of its tools name."""
    description: str | None = None
    """A description of the namespace for the model."""
    tools: Annotated[list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]], Items(TOOLS_MAX)]
    """The functions and custom tools of the namespace."""


class LocalShellTool(Strict):
    """A shell that the client runs commands in."""

    type: Literal["local_shell"]
    """Always `local_shell`."""


class HostedTool(BaseModel):
    """A tool that a server would run. The model is told that it is not available, or the request is refused:
    PENSTOCK_HOSTED_TOOLS says which."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: Literal[
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "mcp",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    ]
    """What it is."""


ResponseTool = Annotated[
    FunctionTool | CustomTool | NamespaceTool | LocalShellTool | HostedTool, Field(discriminator="type")
]
ResponseTools = Annotated[list[ResponseTool], Items(TOOLS_MAX)]


class NamedTool(Strict):
    type: Literal["function", "custom"]
    """`function` or `custom`."""
    name: str = Field(pattern=NAME)
    """The tool's name."""
    namespace: str | None = Field(None, pattern=NAMESPACE)
    """The namespace of the tool, if it has one."""


class LocalShellChoice(Strict):
    type: Literal["local_shell"]
    """Always `local_shell`."""


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    """Always `allowed_tools`."""
    mode: Literal["auto", "required"]
    """`auto` lets the model decide whether to call a tool; `required` forces a call."""
    tools: Annotated[
        list[Annotated[NamedTool | LocalShellChoice, Field(discriminator="type")]], Items(TOOLS_MAX, least=1)
    ]
    """The tools among `tools` that may be called."""


ResponseToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | LocalShellChoice | AllowedToolsChoice, Field(discriminator="type")]
)
