"""The common parameters of chats and completions: sampling, and the form of the answer."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from api.schemas.base import Duration, Items, PassingOn, Strict, Text
from shared.domain.errors import InvalidRequest

STOPS_MAX = 16
CHOICES_MAX = 1000


def _no_zero(limit: int | None) -> int | None:
    if limit == 0:
        raise ValueError("at least 1 token is expected, or -1 for no limit")
    return limit


TokenLimit = Annotated[int | None, Field(ge=-1), AfterValidator(_no_zero)]
"""The longest answer, in tokens; -1 sets no limit."""

BIASES_MAX = 1024


class StreamOptions(Strict):
    include_usage: bool = False
    """Send the token usage in a last chunk without choices."""
    include_obfuscation: Literal[False] = False
    """Only false is supported: no padding is sent."""


class JsonSchema(Strict):
    """A JSON schema for the answer. The worker checks `schema` when it compiles it; the answer always follows it."""

    name: str = Field("answer", pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    """The schema's name, which the answer does not repeat."""
    description: str | None = None
    """A description of the answer's purpose."""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    """The JSON schema that the answer must follow."""
    strict: bool | None = None
    """Accepted; the schema is always followed."""


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    """Plain text (`text`), any JSON object, or JSON of a schema."""
    json_schema: JsonSchema | None = None
    """The schema, for the type `json_schema`."""

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' must be given with the type json_schema, and only with it")
        return self


class StructuredOutputs(Strict):
    """The form of the answer as vLLM's extension defines it. Exactly one field must be given."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: str | None = Field(None, min_length=1)
    """A regular expression that matches the whole answer."""
    choice: Annotated[list[Text], Items(CHOICES_MAX, least=1)] | None = None
    """The texts of which the answer must be one."""
    grammar: str | None = Field(None, min_length=1)
    """A Lark grammar."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one of json, regex, choice and grammar must be given")
        return self


class GenerationRequest(PassingOn):
    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    stream: bool | None = False
    """Stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of the stream."""
    temperature: float | None = Field(None, ge=0, le=2)
    """The randomness of sampling; 0 always takes the likeliest token. Default: the model's own."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample only from the likeliest tokens that together have this probability; 0 always takes the likeliest."""
    top_k: int | None = Field(None, ge=-1)
    """Sample only from this many of the likeliest tokens; 0 or -1 allows all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Sample only from tokens at least this likely, relative to the likeliest."""
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    """Above 1, tokens that have appeared in the prompt or the answer become less likely."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0, tokens that have appeared in the answer become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0, tokens become less likely with each time that they have appeared in the answer."""
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Items(BIASES_MAX)] | None = None
    """The values that are added to the logits of tokens before sampling, by token id."""
    min_tokens: int | None = Field(None, ge=0)
    """The shortest answer, in tokens."""
    ignore_eos: bool | None = None
    """Continue past the model's end-of-sequence token, up to `max_tokens`."""
    stop: str | Annotated[list[str], Items(STOPS_MAX)] | None = None
    """Texts that end the answer, which does not include them."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Items(STOPS_MAX)] | None = None
    """Tokens that end the answer."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The seed of sampling: the same seed and request give the same tokens. Drawn at random when not given."""
    n: int | None = Field(None, ge=1)
    """The number of answers to generate for each prompt."""
    cache_salt: str | None = Field(None, max_length=512)
    """Prompts share the prefix cache only with prompts of the same salt."""
    response_format: ResponseFormat | None = None
    """The form that the answer must have."""
    structured_outputs: StructuredOutputs | None = None
    """The form that the answer must have, as vLLM's extension."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """`priority` requests the class interactive, `flex` the class batch; the key's own class bounds it."""
    keep_alive: Duration | None = None
    """How long a host keeps the model loaded after this request, in seconds or as a text like `10m`, as Ollama defines
    it: 0 unloads it at once, and a negative number keeps it for ever. Other models are served as before."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

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
            raise ValueError("its keys must be token ids")
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
