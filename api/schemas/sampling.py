"""What chats and completions have in common: how tokens are chosen, and how the answer comes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Selective, Strict, Text
from shared.errors import InvalidRequest

STOPS_MAX = 16
CHOICES_MAX = 1000
BIASES_MAX = 1024


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(Strict):
    """`schema` is checked by the worker, which compiles it; `strict` is always kept."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to the type of that name")
        return self


class StructuredOutputs(Strict):
    """vLLM's extension. Exactly one of them."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[Text], Items(CHOICES_MAX, least=1)] | None = None
    grammar: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one of json, regex, choice and grammar")
        return self


class GenerationRequest(Selective):
    model: str = Field(min_length=1, max_length=200)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Items(BIASES_MAX)] | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    stop: str | Annotated[list[str], Items(STOPS_MAX)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Items(STOPS_MAX)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1)
    cache_salt: str | None = Field(None, max_length=512)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # It identifies the caller; it cannot change an answer.
    user: str | None = Field(None, max_length=512)

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
