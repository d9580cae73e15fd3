"""The body of `POST /v1/chat/completions`. An unsupported parameter is refused by name, never ignored."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from api.schemas.base import Items, Metadata, Strict
from api.schemas.sampling import GenerationRequest, TokenLimit
from api.schemas.tools import TOOLS_MAX, ToolCall, ToolChoice, Tools
from shared.domain.errors import InvalidRequest
from shared.domain.suitability import MEDIA, media_refusal

MESSAGES_MAX = 10_000
PARTS_MAX = 1000


class TextPart(Strict):
    type: Literal["text"]
    """Always `text`."""
    text: str
    """The part's text."""
    cache_control: dict[str, Any] | None = Field(None, exclude=True)
    """Accepted; prompts share the prefix cache without it."""


class RefusalPart(Strict):
    type: Literal["refusal"]
    """Always `refusal`."""
    refusal: str
    """The refusal of an earlier answer."""

    @property
    def text(self) -> str:
        return self.refusal


class MediaPart(BaseModel):
    """An image, a sound, a video or a file, for models whose capabilities name it. It is passed on as it is."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: Literal["image_url", "input_audio", "video_url", "file"]
    """What it is; the field of the same name holds it."""

    @property
    def text(self) -> str:
        return ""


Part = Annotated[TextPart | RefusalPart | MediaPart, Field(discriminator="type")]


class Message(Strict):
    """A message of the conversation. Earlier answers may be sent back as the client's library holds them."""

    EMPTY: ClassVar[tuple[str, ...]] = ("audio", "function_call")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """The author of the message. `developer` is treated as `system`."""
    content: str | Annotated[list[Part], Items(PARTS_MAX)] | None = None
    """The message's text, or its parts. It may be null only beside `tool_calls`."""
    name: str | None = None
    """The author's name, for templates that use it."""
    refusal: str | None = None
    """The refusal of an earlier answer."""
    reasoning_content: str | None = None
    """The reasoning of an earlier answer, for templates that take it."""
    reasoning: str | None = None
    """The same under its newer name."""
    reasoning_details: Any = None
    """The same in parts, for a model behind a server that reads them."""
    provider_specific_fields: Any = None
    """Fields that LiteLLM adds to answers, for a model behind a server that reads them."""
    prefix: bool | None = None
    """True in an earlier answer says that it was begun by the client. The last message must not have it."""
    parsed: Any = Field(None, exclude=True)
    """Accepted: what the openai client parsed from the content of an earlier answer."""
    annotations: Any = Field(None, exclude=True)
    """Accepted: the citations of an earlier answer."""
    id: str | None = Field(None, exclude=True)
    """Accepted: the message's id in the client's library."""
    cache_control: dict[str, Any] | None = Field(None, exclude=True)
    """Accepted; prompts share the prefix cache without it."""
    tool_calls: Annotated[list[ToolCall], Items(TOOLS_MAX)] | None = None
    """The calls of an earlier answer."""
    tool_call_id: str | None = Field(None, min_length=1, max_length=256)
    """The call that a message of the role `tool` answers."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for param in cls.EMPTY:
            if data.get(param):
                raise InvalidRequest(f"'messages[].{param}' is not supported here.", param=f"messages.{param}")
        _refuse_unknown_parts(data.get("content"))
        return {param: value for param, value in data.items() if param not in cls.EMPTY}

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise ValueError("'content' may be null only beside 'tool_calls'")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content or self.reasoning or self.refusal):
            raise ValueError(f"'tool_calls', 'reasoning_content' and 'refusal' are not allowed in the role {self.role}")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("'tool_call_id' must be given with the role tool, and only with it")
        return self

    @property
    def text(self) -> str | None:
        if self.content is None:
            return self.refusal
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def media(self) -> frozenset[str]:
        """The types of its content that are no text."""
        parts = self.content if isinstance(self.content, list) else ()
        return frozenset(part.type for part in parts if isinstance(part, MediaPart))


def _as_messages(messages: Any) -> Any:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


Messages = Annotated[list[Message], Items(MESSAGES_MAX, least=1)]
TemplateOptions = Annotated[dict[str, Any], Items(64)]


class Thinking(Strict):
    type: Literal["enabled", "disabled"]
    """Whether the model reasons before it answers."""
    clear_thinking: bool | None = None
    """Accepted: templates decide which earlier reasoning they show."""


class ChatCompletionRequest(GenerationRequest):
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.NEUTRAL,
        "add_special_tokens": (False,),
        "audio": (),
        "best_of": (1,),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "web_search_options": (),
    }

    SENT_ON: ClassVar[tuple[str, ...]] = (
        *GenerationRequest.SENT_ON,
        "thinking",
        "enable_thinking",
        "verbosity",
        "prediction",
        "add_generation_prompt",
        "continue_final_message",
    )

    messages: Annotated[Messages, BeforeValidator(_as_messages)]
    """The conversation so far, the oldest first. A text stands for one message of the user."""
    max_tokens: TokenLimit = None
    """The older name of `max_completion_tokens`."""
    max_completion_tokens: TokenLimit = None
    """The longest answer, in tokens; -1 or none allows the rest of the context."""
    logprobs: bool | None = None
    """Return the log probability of each token."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return this many of the likeliest tokens at each position, too. Needs `logprobs`."""
    store: bool | None = None
    """Store the completion, to be read at `GET /v1/chat/completions/{id}`."""
    metadata: Metadata | None = None
    """Names and values kept with a stored completion."""
    tools: Tools | None = None
    """Functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether the model calls a function, and which."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may have several calls. Default: true."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How much to reason, for templates that support it."""
    thinking: Thinking | None = None
    """Whether to reason, as DeepSeek, Z.ai and Moonshot call it, for templates that support it."""
    enable_thinking: bool | None = None
    """The same, as Alibaba Cloud and SiliconFlow call it."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """How long the answer shall be: the model is told so in the system message, unless it is `medium`."""
    prediction: Any = Field(None, exclude=True)
    """Accepted: a text that the answer may repeat. It can only save time."""
    add_generation_prompt: bool | None = None
    """vLLM's extension: false leaves out the beginning of an answer behind the messages. Default: true."""
    continue_final_message: bool | None = None
    """vLLM's extension: the answer continues the text of the last message, which must be the assistant's."""
    chat_template_kwargs: TemplateOptions | None = None
    """vLLM's extension: further variables for the model's chat template, like `enable_thinking`."""
    safety_identifier: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

    @property
    def reasons(self) -> tuple[str, bool] | None:
        """The parameter that says whether to reason, and what it says; None without one."""
        if self.thinking is not None:
            return "thinking", self.thinking.type == "enabled"
        return None if self.enable_thinking is None else ("enable_thinking", self.enable_thinking)

    def require_known(self) -> None:
        super().require_known()
        if self.messages[-1].prefix:
            raise InvalidRequest(
                "'messages[].prefix' is not supported here for the last message.", param="messages.prefix"
            )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _something_to_continue(self) -> "ChatCompletionRequest":
        if not self.continue_final_message:
            return self
        last, param = self.messages[-1], "continue_final_message"
        if self.add_generation_prompt:
            raise InvalidRequest(f"'{param}' and 'add_generation_prompt' exclude each other.", param=param)
        if last.role != "assistant" or not last.text or last.tool_calls:
            message = f"'{param}' needs a last message of the assistant, with a text and no calls."
            raise InvalidRequest(message, param=param)
        return self

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "ChatCompletionRequest":
        if self.thinking is not None and self.enable_thinking is not None:
            raise InvalidRequest("'enable_thinking' and 'thinking' exclude each other.", param="enable_thinking")
        return self

    @model_validator(mode="after")
    def _metadata_need_a_store(self) -> "ChatCompletionRequest":
        if self.metadata and not self.store:
            raise InvalidRequest("'metadata' is only allowed with 'store': true.", param="metadata")
        return self


def _refuse_unknown_parts(content: Any) -> None:
    for part in content[: PARTS_MAX + 1] if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal", *MEDIA, None):
            raise media_refusal(kind)
