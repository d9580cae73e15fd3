"""The body of `POST /v1/responses`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Metadata, Selective, Strict
from api.schemas.chat import MESSAGES_MAX, PARTS_MAX
from api.schemas.sampling import StreamOptions
from api.schemas.tools import NAME, TOOLS_MAX
from shared.domain.errors import InvalidRequest

ITEMS_MAX = MESSAGES_MAX - 1  # `instructions` is a message, too
LOGPROBS_MAX = 100_000
INCLUDES_MAX = 16
LOGPROBS = "message.output_text.logprobs"


class InputText(Strict):
    type: Literal["input_text", "text"]
    """`input_text`, or its short form `text`."""
    text: str
    """The part's text."""


class OutputText(Strict):
    """A part of an earlier answer."""

    type: Literal["output_text"]
    """Always `output_text`."""
    text: str
    """The part's text."""
    annotations: Annotated[list[Any], Items(0)] = Field(default_factory=list)
    """Always empty."""
    logprobs: Annotated[list[Any], Items(LOGPROBS_MAX)] | None = None
    """Accepted from an earlier answer without effect."""


class Refusal(Strict):
    type: Literal["refusal"]
    """Always `refusal`."""
    refusal: str
    """The refusal of an earlier answer."""

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]


class Item(Strict):
    """The fields that items of earlier answers have beside their content. They are accepted unchanged."""

    id: str | None = Field(None, max_length=256)
    """The item's id in an earlier answer."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    """The item's status in an earlier answer."""


class MessageItem(Item):
    type: Literal["message"] = "message"
    """Always `message`; it may be left out."""
    role: Literal["user", "assistant", "system", "developer"]
    """The author of the message. `developer` is treated as `system`."""
    content: str | Annotated[list[Part], Items(PARTS_MAX)]
    """The message's text, or its parts."""
    phase: str | None = None
    """Accepted from an earlier answer without effect."""


class CallItem(Item):
    type: Literal["function_call"]
    """Always `function_call`."""
    call_id: str = Field(min_length=1, max_length=256)
    """The call's id, which its output names."""
    name: str = Field(pattern=NAME)
    """The function's name."""
    arguments: str
    """The arguments as JSON, as the model wrote them."""


class CallOutputItem(Item):
    type: Literal["function_call_output"]
    """Always `function_call_output`."""
    call_id: str = Field(min_length=1, max_length=256)
    """The id of the call that this item answers."""
    output: str | Annotated[list[InputText], Items(PARTS_MAX)]
    """The result of the function."""


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    """`reasoning_text`, or `summary_text` in a summary."""
    text: str
    """The part's text."""


class ReasoningItem(Item):
    type: Literal["reasoning"]
    """Always `reasoning`."""
    summary: Annotated[list[ReasoningText], Items(PARTS_MAX)] = Field(default_factory=list)
    """The summary of an earlier answer's reasoning."""
    content: Annotated[list[ReasoningText], Items(PARTS_MAX)] | None = None
    """The reasoning of an earlier answer."""
    encrypted_content: None = None
    """Only null is supported."""


InputItem = Annotated[MessageItem | CallItem | CallOutputItem | ReasoningItem, Field(discriminator="type")]


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


class NamedFunction(Strict):
    type: Literal["function"]
    """Always `function`."""
    name: str = Field(pattern=NAME)
    """The function's name."""


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    """Always `allowed_tools`."""
    mode: Literal["auto", "required"]
    """`auto` lets the model decide whether to call a function; `required` forces a call."""
    tools: Annotated[list[NamedFunction], Items(TOOLS_MAX, least=1)]
    """The functions among `tools` that may be called."""


class TextFormat(Strict):
    """The form of the answer. `name`, `schema`, `strict` and `description` belong to the type `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    """Plain text (`text`), any JSON object, or JSON of a schema."""
    name: str | None = Field(None, pattern=NAME)
    """The schema's name, for the type `json_schema`."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """The JSON schema that the answer must follow, for the type `json_schema`."""
    strict: bool | None = None
    """Accepted; the schema is always followed."""
    description: str | None = None
    """A description of the answer's purpose."""

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None and self.name is not None):
            raise ValueError("'name' and 'schema' are only allowed with the type json_schema, which needs both")
        return self


class TextConfig(Strict):
    format: TextFormat | None = None
    """The form that the answer must have."""
    verbosity: Literal["medium"] | None = None
    """Only `medium` is supported."""


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """How much to reason, for models that support it."""
    summary: Literal["auto"] | None = None
    """Accepted; no summary is generated."""
    generate_summary: None = None
    """Only null is supported."""


class ResponseRequest(Selective):
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "truncation": ("disabled",),
    }

    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    input: str | Annotated[list[InputItem], Items(ITEMS_MAX, least=1)]
    """The input: a text, or the items of a conversation."""
    instructions: str | None = None
    """The system message before the conversation. The next response does not inherit it."""
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    """The id of the stored response that this one continues."""
    background: bool | None = None
    """Answer at once, and continue when the client leaves. Needs `store`."""
    stream: bool | None = None
    """Stream the response as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of the stream."""
    store: bool | None = None
    """Store the response, to be read or continued. Default: true."""
    metadata: Metadata | None = None
    """Names and values kept with the response."""
    tools: Annotated[list[FunctionTool], Items(TOOLS_MAX)] | None = None
    """Functions that the model may call."""
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedFunction | AllowedFunctions, Field(discriminator="type")]
        | None
    ) = None
    """Whether the model calls a function, and which."""
    parallel_tool_calls: bool | None = None
    """Whether a response may have several calls. Default: true."""
    text: TextConfig | None = None
    """The form that the answer must have."""
    reasoning: Reasoning | None = None
    """Options of the reasoning."""
    max_output_tokens: int | None = Field(None, ge=1)
    """The longest answer, in tokens. Default: the rest of the context."""
    temperature: float | None = Field(None, ge=0, le=2)
    """The randomness of sampling; 0 always takes the likeliest token. Default: the model's own."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample only from the likeliest tokens that together have this probability; 0 always takes the likeliest."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return this many of the likeliest tokens at each position."""
    include: Annotated[list[Literal["message.output_text.logprobs"]], Items(INCLUDES_MAX)] | None = None
    """Further fields of the response."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` requests the class interactive, `flex` the class batch; the key's own class bounds it."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""
    safety_identifier: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

    @field_validator("input", mode="before")
    @classmethod
    def _each_typed(cls, items: Any) -> Any:
        return [_typed(item) for item in items[: ITEMS_MAX + 1]] if isinstance(items, list) else items

    @model_validator(mode="after")
    def _what_goes_together(self) -> "ResponseRequest":
        if self.background and self.store is False:
            raise InvalidRequest("'background' needs 'store': true.", param="store")
        return self


def _typed(item: Any) -> Any:
    """Add the type `message` to an item that has none."""
    return {"type": "message", **item} if isinstance(item, dict) and "role" in item else item
