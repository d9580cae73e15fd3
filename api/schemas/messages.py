"""The bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`, as Anthropic defines them. An unsupported
parameter is refused by name, never ignored."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Selective, Strict
from api.schemas.chat import MESSAGES_MAX, PARTS_MAX
from api.schemas.message_blocks import CacheControl, MessageParam, MessageTools, SystemBlock
from api.schemas.sampling import STOPS_MAX
from api.schemas.tools import NAME
from shared.domain.errors import InvalidRequest

EDITS_MAX = 16
BUDGET_MIN = 1024


class ThinkingConfig(Strict):
    """The model reasons before it answers or not, if its chat template knows how. Without this parameter it does not,
    and no reasoning is in the answer."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    """`enabled` and `adaptive` have it reason; `disabled` and `between_tools` do not."""
    budget_tokens: int | None = Field(None, ge=BUDGET_MIN)
    """Accepted: the reasoning is bounded by `max_tokens` alone."""
    display: Literal["summarized", "omitted"] | None = None
    """`omitted` leaves the text of the reasoning out of the answer, and puts it into `signature` to be sent back."""

    @model_validator(mode="after")
    def _a_budget_when_enabled(self) -> "ThinkingConfig":
        if self.budget_tokens is not None and self.type != "enabled":
            raise ValueError("'budget_tokens' is only allowed with the type enabled")
        return self


class JsonFormat(Strict):
    type: Literal["json_schema"]
    """Always `json_schema`."""
    schema_: dict[str, Any] = Field(alias="schema")
    """The JSON schema that the answer must follow."""


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much to reason, for templates that know it; other models answer as always."""
    format: JsonFormat | None = None
    """The form that the answer must have."""


class AnyToolChoice(Strict):
    type: Literal["auto", "any"]
    """`auto` lets the model decide whether to call a tool; `any` forces a call."""
    disable_parallel_tool_use: bool | None = None
    """True allows one call at most."""


class NamedToolChoice(Strict):
    type: Literal["tool"]
    """Always `tool`."""
    name: str = Field(pattern=NAME)
    """The tool to call."""
    disable_parallel_tool_use: bool | None = None
    """True allows one call at most."""


class NoToolChoice(Strict):
    type: Literal["none"]
    """Always `none`: no tool may be called."""


class MessageMetadata(Strict):
    user_id: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""


class ContextEdit(Strict):
    type: Literal["clear_thinking_20251015"]
    """Always `clear_thinking_20251015`."""
    keep: Any = Field(None, exclude=True)
    """Accepted: the model's chat template decides which reasoning it reads."""


class ContextManagement(Strict):
    """Accepted: edits of earlier reasoning change nothing here, where the chat template decides; others are refused."""

    edits: Annotated[list[ContextEdit], Items(EDITS_MAX)] | None = None
    """The edits."""


class CountTokensRequest(Selective):
    """A conversation whose tokens are counted."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "container": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "speed": ("standard",),
        "user_profile_id": (),
        "workspace_id": (),
    }

    model: str = Field(max_length=200)
    """The model's name, as `GET /v1/models` lists it; `default` is the deployment's default model."""
    messages: Annotated[list[MessageParam], Items(MESSAGES_MAX, least=1)]
    """The conversation so far, the oldest first. The last message must not be the assistant's."""
    system: str | Annotated[list[SystemBlock], Items(PARTS_MAX)] | None = None
    """The system prompt. A block that begins with `x-anthropic-billing-header:` is left out, since it changes with each
    request and means nothing to the model."""
    tools: MessageTools | None = None
    """The tools that the model may call."""
    tool_choice: Annotated[AnyToolChoice | NamedToolChoice | NoToolChoice, Field(discriminator="type")] | None = None
    """Whether the model calls a tool, and which."""
    thinking: ThinkingConfig | None = None
    """Whether the model reasons before it answers."""
    output_config: OutputConfig | None = None
    """How much to reason, and the form of the answer."""
    output_format: JsonFormat | None = None
    """The older name of `output_config.format`."""
    context_management: ContextManagement | None = Field(None, exclude=True)
    """Accepted for edits of earlier reasoning, which change nothing here; others are refused."""
    cache_control: CacheControl | None = Field(None, exclude=True)
    """Accepted; prompts share the prefix cache without it."""

    @model_validator(mode="after")
    def _one_format(self) -> "CountTokensRequest":
        if self.output_format and self.output_config and self.output_config.format:
            message = "'output_format' and 'output_config.format' exclude each other."
            raise InvalidRequest(message, param="output_format")
        return self

    @model_validator(mode="after")
    def _no_begun_answer(self) -> "CountTokensRequest":
        if self.messages[-1].role == "assistant":
            message = "'messages': the last one must have the role user: no model here continues a begun answer."
            raise InvalidRequest(message, param="messages")
        return self

    @property
    def form(self) -> JsonFormat | None:
        return self.output_format or (self.output_config.format if self.output_config else None)

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type in ("enabled", "adaptive")


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)
    """The longest answer, in tokens. It is lowered to what fits the model's context beside the prompt."""
    stream: bool | None = False
    """Stream the answer as server-sent events."""
    temperature: float | None = Field(None, ge=0, le=1)
    """The randomness of sampling; 0 always takes the likeliest token. Default: the model's own."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample only from the likeliest tokens that together have this probability; 0 always takes the likeliest."""
    top_k: int | None = Field(None, ge=0)
    """Sample only from this many of the likeliest tokens; 0 allows all."""
    stop_sequences: Annotated[list[str], Items(STOPS_MAX)] | None = None
    """Texts that end the answer, which does not include them."""
    metadata: MessageMetadata | None = None
    """Who sends the request."""
    service_tier: Literal["auto", "standard_only"] | None = Field(None, exclude=True)
    """Accepted: both leave the class to the key or the header `x-penstock-priority`."""
    diagnostics: Annotated[dict[str, Any], Items(16)] | None = Field(None, exclude=True)
    """Accepted: nothing is reported of the prefix cache beside `usage`."""

    @field_validator("stop_sequences")
    @classmethod
    def _stops(cls, stops: list[str] | None) -> list[str] | None:
        if any(not 0 < len(text) <= 1000 for text in stops or ()):
            raise ValueError("strings of 1 to 1000 characters are expected")
        return stops
