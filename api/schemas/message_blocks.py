"""The content blocks and the tools of `POST /v1/messages`, as Anthropic defines them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from api.schemas.base import Items, Strict
from api.schemas.chat import PARTS_MAX
from api.schemas.tools import NAME, TOOLS_MAX
from shared.domain.errors import InvalidRequest

CacheControl = Annotated[dict[str, Any], Items(16)]


class Block(Strict):
    cache_control: CacheControl | None = Field(None, exclude=True)
    """Accepted; prompts share the prefix cache without it."""


class TextBlock(Block):
    type: Literal["text"]
    """Always `text`."""
    text: str
    """The block's text."""
    citations: Any = Field(None, exclude=True)
    """Accepted: the citations of an earlier answer."""


class Base64Source(Strict):
    type: Literal["base64"]
    """Always `base64`."""
    media_type: str = Field(max_length=128)
    """The type of the data, like `image/png`."""
    data: str
    """The bytes in base64."""


class UrlSource(Strict):
    type: Literal["url"]
    """Always `url`."""
    url: str
    """Where the model's server finds it."""


class PlainTextSource(Strict):
    type: Literal["text"]
    """Always `text`."""
    media_type: Literal["text/plain"] = "text/plain"
    """Always `text/plain`."""
    data: str
    """The text."""


class ImageBlock(Block):
    """An image, for models whose capabilities name `images`."""

    type: Literal["image"]
    """Always `image`."""
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    """The image's bytes, or its URL."""


class ContentSource(Strict):
    type: Literal["content"]
    """Always `content`."""
    content: str | Annotated[list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]], Items(PARTS_MAX)]
    """The document's text, or its blocks."""


class CitationsConfig(Strict):
    enabled: Literal[False] = False
    """Only false is supported: answers cite nothing."""


class DocumentBlock(Block):
    """A document: a text for every model, or a file for models whose capabilities name `files`."""

    type: Literal["document"]
    """Always `document`."""
    source: Annotated[Base64Source | PlainTextSource | ContentSource, Field(discriminator="type")]
    """The document's bytes, its text or its blocks."""
    title: str | None = None
    """The title, which the model reads before the text."""
    context: str | None = None
    """What the model shall know of the document, which it reads before the text."""
    citations: CitationsConfig | None = None
    """Whether the answer shall cite the document."""


class SearchResultBlock(Block):
    """A text that the client's own search found."""

    type: Literal["search_result"]
    """Always `search_result`."""
    source: str
    """Where it was found, which the model reads before the text."""
    title: str
    """The title, which the model reads before the text."""
    content: Annotated[list[TextBlock], Items(PARTS_MAX)]
    """The text."""
    citations: CitationsConfig | None = None
    """Whether the answer shall cite the text."""


class ToolReferenceBlock(Block):
    """A tool that the client's own search found. The model knows all tools from the beginning."""

    type: Literal["tool_reference"]
    """Always `tool_reference`."""
    tool_name: str = Field(min_length=1, max_length=256)
    """The tool's name."""


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    """Always `thinking`."""
    thinking: str
    """The reasoning of an earlier answer, for templates that take it."""
    signature: str = ""
    """The reasoning in the form that an answer without its text had it. It is not checked."""


class RedactedThinkingBlock(Strict):
    type: Literal["redacted_thinking"]
    """Always `redacted_thinking`."""
    data: str
    """Accepted: no model here can read it."""


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    """Always `tool_use`."""
    id: str = Field(min_length=1, max_length=256)
    """The call's id, which its result names."""
    name: str = Field(min_length=1, max_length=256)
    """The tool's name."""
    input: Annotated[dict[str, Any], Items(10_000)]
    """The arguments."""
    caller: Any = Field(None, exclude=True)
    """Accepted: who called the tool."""


ResultBlock = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, Field(discriminator="type")
]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    """Always `tool_result`."""
    tool_use_id: str = Field(min_length=1, max_length=256)
    """The call whose result it is."""
    content: str | Annotated[list[ResultBlock], Items(PARTS_MAX)] | None = None
    """The result."""
    is_error: bool | None = None
    """True puts `Error: ` before the result."""


class SystemBlock(TextBlock):
    """A text of the system prompt."""


MessageBlock = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock,
    Field(discriminator="type"),
]
OF_USER = frozenset({"text", "image", "document", "search_result", "tool_result"})
OF_ASSISTANT = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
ALLOWED = {"user": OF_USER, "assistant": OF_ASSISTANT, "system": frozenset({"text"})}


class MessageParam(Strict):
    """A message of the conversation. Earlier answers may be sent back as they came."""

    role: Literal["user", "assistant", "system"]
    """The author of the message."""
    content: str | Annotated[list[MessageBlock], Items(PARTS_MAX)]
    """The message's text, or its blocks."""

    @model_validator(mode="after")
    def _blocks_of_its_role(self) -> "MessageParam":
        for block in self.content if isinstance(self.content, list) else ():
            if block.type not in ALLOWED[self.role]:
                raise ValueError(f"a block of the type {block.type} is not allowed in the role {self.role}")
        return self


class ClientTool(Strict):
    """A tool that the client runs. Calls of a `strict` tool always follow `input_schema`; other calls as well as the
    model can."""

    type: Literal["custom"] | None = None
    """`custom`, or nothing."""
    name: str = Field(pattern=NAME)
    """The tool's name."""
    description: str | None = None
    """A description of the tool for the model."""
    input_schema: dict[str, Any]
    """The tool's arguments, as a JSON schema."""
    strict: bool | None = None
    """Whether the model's arguments must follow the schema."""
    cache_control: CacheControl | None = Field(None, exclude=True)
    """Accepted; prompts share the prefix cache without it."""
    eager_input_streaming: bool | None = Field(None, exclude=True)
    """Accepted: arguments are streamed as they are generated."""
    defer_loading: bool | None = Field(None, exclude=True)
    """Accepted: every tool is told to the model at once."""
    input_examples: Annotated[list[Any], Items(TOOLS_MAX)] | None = Field(None, exclude=True)
    """Accepted; they are not told to the model."""
    allowed_callers: Annotated[list[Literal["direct"]], Items(1)] | None = None
    """Only `direct` is supported: the model itself calls the tool."""


class AnthropicTool(BaseModel):
    """A tool that Anthropic defines, which has no schema. One that would run on a server is not available: the model is
    told so, unless `PENSTOCK_HOSTED_TOOLS` refuses the request. One that the client runs is refused."""

    BY_CLIENT: ClassVar[tuple[str, ...]] = ("bash", "browser", "computer", "memory", "text_editor")

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str = Field(max_length=128)
    """The tool's type and version, like `web_search_20250305`."""
    name: str = Field("", max_length=128)
    """The tool's name."""

    @model_validator(mode="after")
    def _refuse_without_schema(self) -> "AnthropicTool":
        if self.type.startswith(self.BY_CLIENT):
            message = f"'tools': the type {self.type} is not supported here: send a tool with an 'input_schema'."
            raise InvalidRequest(message, param="tools")
        return self


def _kind(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "client" if kind in (None, "custom") else "anthropic"


MessageTools = Annotated[
    list[
        Annotated[
            Annotated[ClientTool, Tag("client")] | Annotated[AnthropicTool, Tag("anthropic")], Discriminator(_kind)
        ]
    ],
    Items(TOOLS_MAX),
]
