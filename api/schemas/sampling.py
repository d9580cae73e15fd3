"""What chats and completions have in common: how tokens are chosen, and how the answer comes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Selective, Strict, Text
from shared.domain.errors import InvalidRequest

STOPS_MAX = 16
CHOICES_MAX = 1000
BIASES_MAX = 1024


class StreamOptions(Strict):
    include_usage: bool = False
    """Send the usage in a last chunk without choices."""
    include_obfuscation: Literal[False] = False
    """Only false is supported: no padding is sent."""


class JsonSchema(Strict):
    """`schema` is checked by the worker, which compiles it; `strict` is always kept."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    """A name for the schema, which the answer does not repeat."""
    description: str | None = None
    """What the answer is for."""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    """The JSON schema that the answer must follow."""
    strict: bool | None = None
    """Accepted; the schema is always followed."""


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    """`text`, any JSON object, or JSON of a schema."""
    json_schema: JsonSchema | None = None
    """The schema, for the type `json_schema`."""

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to the type of that name")
        return self


class StructuredOutputs(Strict):
    """vLLM's extension. Exactly one of them."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: str | None = Field(None, min_length=1)
    """A regular expression that matches the whole answer."""
    choice: Annotated[list[Text], Items(CHOICES_MAX, least=1)] | None = None
    """The texts of which the answer is one."""
    grammar: str | None = Field(None, min_length=1)
    """A Lark grammar."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one of json, regex, choice and grammar")
        return self


class GenerationRequest(Selective):
    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    stream: bool | None = False
    """Send the answer as server-sent events while it grows."""
    stream_options: StreamOptions | None = None
    """What else a stream tells."""
    temperature: float | None = Field(None, ge=0, le=2)
    """How random the choice of tokens is; 0 always takes the likeliest. Default: the model's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Choose only among the likeliest tokens that have this probability together."""
    top_k: int | None = Field(None, ge=-1)
    """Choose only among so many of the likeliest tokens; 0 or -1 for all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Choose only among tokens at least this likely, relative to the likeliest."""
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    """Above 1, tokens that have appeared in prompt or answer become less likely."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0, tokens that the answer has become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """The same for each time that the answer has them."""
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Items(BIASES_MAX)] | None = None
    """By token id, what is added to its logit before the choice."""
    min_tokens: int | None = Field(None, ge=0)
    """No end before so many tokens."""
    ignore_eos: bool | None = None
    """Go on past the end that the model sees, to `max_tokens`."""
    stop: str | Annotated[list[str], Items(STOPS_MAX)] | None = None
    """Texts that end the answer, which does not include them."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Items(STOPS_MAX)] | None = None
    """Tokens that end the answer."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same seed and request choose the same tokens. Drawn when it is not given."""
    n: int | None = Field(None, ge=1)
    """How many answers to make of each prompt."""
    cache_salt: str | None = Field(None, max_length=512)
    """Prompts share cached computations only with prompts of the same salt."""
    response_format: ResponseFormat | None = None
    """The form that the answer must have."""
    structured_outputs: StructuredOutputs | None = None
    """The form that the answer must have, as vLLM asks for it."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` for interactive, `flex` for batch priority, as far as the key may."""
    user: str | None = Field(None, max_length=512)
    """It identifies the caller and cannot change an answer."""

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        listed = [stop] if isinstance(stop, str) else stop or []
        if any(not 0 < len(text) <= 1000 for text in listed):
            raise ValueError("strings of 1 to 1000 characters are expected")
        return listed or None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if any(not token.isascii() or not token.isdigit() for token in bias or ()):
            raise ValueError("its keys are token ids")
        return bias

    @model_validator(mode="after")
    def _one_form(self) -> "GenerationRequest":
        formed = self.response_format is not None and self.response_format.type != "text"
        if formed and self.structured_outputs is not None:
            raise InvalidRequest(
                "'structured_outputs' and 'response_format' exclude each other.", param="structured_outputs"
            )
        return self

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        return self
