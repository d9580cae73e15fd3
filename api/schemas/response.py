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
    """`input_text`, or `text` for short."""
    text: str
    """The part's text."""


class OutputText(Strict):
    """As an earlier answer had it."""

    type: Literal["output_text"]
    """Always `output_text`."""
    text: str
    """The part's text."""
    annotations: Annotated[list[Any], Items(0)] = Field(default_factory=list)
    """Always empty."""
    logprobs: Annotated[list[Any], Items(LOGPROBS_MAX)] | None = None
    """Accepted as an earlier answer had them."""


class Refusal(Strict):
    type: Literal["refusal"]
    """Always `refusal`."""
    refusal: str
    """What an earlier answer refused with."""

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]


class Item(Strict):
    """What earlier answers have beside their content comes back as it was."""

    id: str | None = Field(None, max_length=256)
    """The item's id in an earlier answer."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    """The item's status in an earlier answer."""


class MessageItem(Item):
    type: Literal["message"] = "message"
    """Always `message`; it may be left out."""
    role: Literal["user", "assistant", "system", "developer"]
    """Who speaks. `developer` is treated as `system`."""
    content: str | Annotated[list[Part], Items(PARTS_MAX)]
    """The message's text, whole or in parts."""
    phase: str | None = None
    """Accepted as an earlier answer had it."""


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
    """The call that this answers."""
    output: str | Annotated[list[InputText], Items(PARTS_MAX)]
    """What the function returned."""


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    """`reasoning_text`, or `summary_text` in a summary."""
    text: str
    """The part's text."""


class ReasoningItem(Item):
    type: Literal["reasoning"]
    """Always `reasoning`."""
    summary: Annotated[list[ReasoningText], Items(PARTS_MAX)] = Field(default_factory=list)
    """A summary of the reasoning, as an earlier answer had it."""
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
    """What the function does, for the model to read."""
    parameters: dict[str, Any] | None = None
    """The function's arguments, as a JSON schema."""
    strict: bool | None = None
    """Hold the model's arguments to the schema."""


class NamedFunction(Strict):
    type: Literal["function"]
    """Always `function`."""
    name: str = Field(pattern=NAME)
    """The function's name."""


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    """Always `allowed_tools`."""
    mode: Literal["auto", "required"]
    """`auto` lets the model decide whether it calls; `required` makes it call."""
    tools: Annotated[list[NamedFunction], Items(TOOLS_MAX, least=1)]
    """Those of `tools` that may be called."""


class TextFormat(Strict):
    """`name`, `schema`, `strict` and `description` belong to json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    """`text`, any JSON object, or JSON of a schema."""
    name: str | None = Field(None, pattern=NAME)
    """The schema's name, for the type `json_schema`."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """The JSON schema that the answer must follow, for the type `json_schema`."""
    strict: bool | None = None
    """Accepted; the schema is always followed."""
    description: str | None = None
    """What the answer is for."""

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None and self.name is not None):
            raise ValueError("'name' and 'schema' belong to the type json_schema")
        return self


class TextConfig(Strict):
    format: TextFormat | None = None
    """The form that the answer must have."""
    verbosity: Literal["medium"] | None = None
    """Only `medium` is supported."""


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """How much to reason, for models that know it."""
    summary: Literal["auto"] | None = None
    """Accepted; no summary is made."""
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

    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    input: str | Annotated[list[InputItem], Items(ITEMS_MAX, least=1)]
    """What is asked: a text, or the items of a conversation."""
    instructions: str | None = None
    """What the model is told before the conversation; not kept for the next response."""
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    """The stored response that this one goes on with."""
    background: bool | None = None
    """Answer at once, and go on when the client leaves; needs `store`."""
    stream: bool | None = None
    """Send the response as server-sent events while it grows."""
    stream_options: StreamOptions | None = None
    """What else a stream tells."""
    store: bool | None = None
    """Keep the response, to be read or gone on with. Default: true."""
    metadata: Metadata | None = None
    """Names and values kept with the response."""
    tools: Annotated[list[FunctionTool], Items(TOOLS_MAX)] | None = None
    """Functions that the model may call."""
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedFunction | AllowedFunctions, Field(discriminator="type")]
        | None
    ) = None
    """Whether a function is called, and which."""
    parallel_tool_calls: bool | None = None
    """Whether a response may have several calls. Default: true."""
    text: TextConfig | None = None
    """The form that the answer must have."""
    reasoning: Reasoning | None = None
    """How to reason."""
    max_output_tokens: int | None = Field(None, ge=1)
    """The longest answer, in tokens. Default: what the context has room for."""
    temperature: float | None = Field(None, ge=0, le=2)
    """How random the choice of tokens is; 0 always takes the likeliest. Default: the model's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Choose only among the likeliest tokens that have this probability together."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Tell so many of the likeliest tokens at each place."""
    include: Annotated[list[Literal["message.output_text.logprobs"]], Items(INCLUDES_MAX)] | None = None
    """What else the response tells."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` for interactive, `flex` for batch priority, as far as the key may."""
    user: str | None = Field(None, max_length=512)
    """It identifies the caller and cannot change an answer."""
    safety_identifier: str | None = Field(None, max_length=512)
    """It identifies the caller and cannot change an answer."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """It identifies the caller and cannot change an answer."""

    @field_validator("input", mode="before")
    @classmethod
    def _each_typed(cls, items: Any) -> Any:
        return [_typed(item) for item in items[: ITEMS_MAX + 1]] if isinstance(items, list) else items

    @model_validator(mode="after")
    def _what_goes_together(self) -> "ResponseRequest":
        if self.background and self.store is False:
            raise InvalidRequest("'background' needs 'store'.", param="store")
        return self


def _typed(item: Any) -> Any:
    """A message need not say that it is one."""
    return {"type": "message", **item} if isinstance(item, dict) and "role" in item else item
