"""The bodies of `POST /v1/responses`, `/v1/responses/input_tokens` and `/v1/responses/compact`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Duration, Items, Metadata, Selective, Strict
from api.schemas.chat import TemplateOptions
from api.schemas.response_items import CompactionTriggerItem, InputItems, typed
from api.schemas.response_tools import ResponseToolChoice, ResponseTools
from api.schemas.sampling import StreamOptions
from api.schemas.tools import NAME
from shared.domain.errors import InvalidRequest

INCLUDES_MAX = 16
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


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
    verbosity: Literal["low", "medium", "high"] | None = None
    """How long the answer shall be: the model is told so in the system message, unless it is `medium`."""


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How much to reason, for models that support it."""
    context: Literal["auto", "all_turns", "current_turn"] | None = None
    """`current_turn` leaves out the reasoning before the last message of the user; else the chat template decides."""
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    """Accepted; no summary is generated, since the reasoning itself is in the answer."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of `summary`."""


class ConversationName(Strict):
    id: str = Field(min_length=1, max_length=256)
    """The conversation's id."""


class ResponseInput(Selective):
    """The model of a response reads what these parameters make of its input."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "personality": (),
        "prompt": (),
    }

    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    input: str | InputItems | None = None
    """The input: a text, or the items of a conversation. It may be left out only where a stored one goes on."""
    instructions: str | None = None
    """The system message before the conversation. The next response does not inherit it."""
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    """The id of the stored response that this one continues."""
    conversation: str | ConversationName | None = None
    """The stored conversation that this response continues. It gets the input and the output as its items."""
    tools: ResponseTools | None = None
    """Tools that the model may call, and that the client runs. Of hosted tools the model is told that there are
    none here."""
    tool_choice: ResponseToolChoice | None = None
    """Whether the model calls a tool, and which."""
    parallel_tool_calls: bool | None = None
    """Whether a response may have several calls. Default: true."""
    text: TextConfig | None = None
    """The form that the answer must have."""
    reasoning: Reasoning | None = None
    """Options of the reasoning."""
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` drops the oldest items of a conversation that is longer than the model's context, until it fits."""
    chat_template_kwargs: TemplateOptions | None = None
    """vLLM's extension: further variables for the model's chat template, like `enable_thinking`."""

    @field_validator("input", mode="before")
    @classmethod
    def _each_typed(cls, items: Any) -> Any:
        return typed(items)

    @model_validator(mode="after")
    def _something_to_read(self) -> "ResponseInput":
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidRequest(
                "'conversation' and 'previous_response_id' exclude each other.", param="previous_response_id"
            )
        if self.input is None and self.previous_response_id is None and self.conversation is None:
            raise InvalidRequest("Missing required parameter: 'input'.", param="input")
        items = self.input if isinstance(self.input, list) else []
        if any(isinstance(item, CompactionTriggerItem) for item in items[:-1]):
            raise InvalidRequest("'input': an item of the type compaction_trigger must be the last one.", param="input")
        return self

    @property
    def conversation_id(self) -> str:
        """The id of its stored conversation; '' without one."""
        named = self.conversation
        return (named if isinstance(named, str) else named.id) if named else ""


class InputTokensRequest(ResponseInput):
    """A response whose input is counted."""


class CompactRequest(ResponseInput):
    """A conversation to compact. The fields that only shape an answer are accepted, since clients send the body of
    their next response."""

    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` requests the class interactive, `flex` the class batch; the key's own class bounds it."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""


class ResponseRequest(ResponseInput):
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "context_management": ([],),
        "image": (),
        "moderation": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        **ResponseInput.NEUTRAL,
    }

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
    max_output_tokens: int | None = Field(None, ge=1)
    """The longest answer, in tokens. Default: the rest of the context."""
    max_tool_calls: int | None = Field(None, ge=1)
    """The most calls of hosted tools. There are none here, so no response exceeds it."""
    temperature: float | None = Field(None, ge=0, le=2)
    """The randomness of sampling; 0 always takes the likeliest token. Default: the model's own."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample only from the likeliest tokens that together have this probability; 0 always takes the likeliest."""
    top_k: int | None = Field(None, ge=-1)
    """Sample only from this many of the likeliest tokens; 0 or -1 allows all."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0, tokens that have appeared in the answer become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0, tokens become less likely with each time that they have appeared in the answer."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The seed of sampling: the same seed and request give the same tokens. Drawn at random when not given."""
    keep_alive: Duration | None = None
    """How long a host keeps the model loaded after this request, in seconds or as a text like `10m`, as Ollama defines
    it: 0 unloads it at once, and a negative number keeps it for ever."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return this many of the likeliest tokens at each position."""
    include: Annotated[list[Include], Items(INCLUDES_MAX)] | None = None
    """Further fields of the response: the log probabilities of its text, and its reasoning in a form that clients send
    back. Those of hosted tools are accepted, since no response has their items."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` requests the class interactive, `flex` the class batch; the key's own class bounds it."""
    client_metadata: Annotated[dict[str, Any], Items(64)] | None = None
    """Accepted: what Codex tells of itself. It cannot change the answer."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""
    safety_identifier: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> "ResponseRequest":
        if self.background and self.store is False:
            raise InvalidRequest("'background' needs 'store': true.", param="store")
        if self.conversation and self.store is False:
            raise InvalidRequest("'conversation' needs 'store': true.", param="store")
        return self
