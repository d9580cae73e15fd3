"""The body of `POST /v1/responses`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Metadata, Selective, Strict
from api.schemas.chat import MESSAGES_MAX, PARTS_MAX
from api.schemas.sampling import StreamOptions
from api.schemas.tools import NAME, TOOLS_MAX
from shared.errors import InvalidRequest

ITEMS_MAX = MESSAGES_MAX - 1  # `instructions` is a message, too
LOGPROBS_MAX = 100_000
INCLUDES_MAX = 16
LOGPROBS = "message.output_text.logprobs"


class InputText(Strict):
    type: Literal["input_text", "text"]
    text: str


class OutputText(Strict):
    """As an earlier answer had it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Items(0)] = Field(default_factory=list)
    logprobs: Annotated[list[Any], Items(LOGPROBS_MAX)] | None = None


class Refusal(Strict):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]


class Item(Strict):
    """What earlier answers have beside their content comes back as it was."""

    id: str | None = Field(None, max_length=256)
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Items(PARTS_MAX)]
    phase: str | None = None


class CallItem(Item):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(pattern=NAME)
    arguments: str


class CallOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: str | Annotated[list[InputText], Items(PARTS_MAX)]


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Item):
    type: Literal["reasoning"]
    summary: Annotated[list[ReasoningText], Items(PARTS_MAX)] = Field(default_factory=list)
    content: Annotated[list[ReasoningText], Items(PARTS_MAX)] | None = None
    encrypted_content: None = None


InputItem = Annotated[MessageItem | CallItem | CallOutputItem | ReasoningItem, Field(discriminator="type")]


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Strict):
    type: Literal["function"]
    name: str = Field(pattern=NAME)


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Items(TOOLS_MAX, least=1)]


class TextFormat(Strict):
    """`name`, `schema`, `strict` and `description` belong to json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=NAME)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None and self.name is not None):
            raise ValueError("'name' and 'schema' belong to the type json_schema")
        return self


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: None = None


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
    input: str | Annotated[list[InputItem], Items(ITEMS_MAX, least=1)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    tools: Annotated[list[FunctionTool], Items(TOOLS_MAX)] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedFunction | AllowedFunctions, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Literal["message.output_text.logprobs"]], Items(INCLUDES_MAX)] | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # These identify the caller; they cannot change an answer.
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)

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
