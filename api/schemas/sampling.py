"""The common parameters of chats and completions: sampling, and the form of the answer."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from api.schemas.base import Duration, Items, Strict
from api.schemas.extensions import ExtendedRequest
from shared.domain.errors import InvalidRequest

STOPS_MAX = 16


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


class ChunkOptions(StreamOptions):
    continuous_usage_stats: bool = False
    """vLLM's extension: send the usage so far in each chunk. Needs `include_usage`."""


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
    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    """Plain text (`text`), any JSON object, or JSON of a schema; `json` and `regex` are TGI's."""
    json_schema: JsonSchema | None = None
    """The schema, for the type `json_schema`."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """The schema itself, for the types `json_object` and `json_schema`, as llama.cpp and Together take it."""
    value: dict[str, Any] | str | None = None
    """The schema for the type `json`, or the expression for the type `regex`, as TGI takes them."""

    @property
    def json_form(self) -> dict[str, Any] | str | None:
        """The JSON schema that the answer must follow; None without one."""
        named = self.json_schema.schema_ if self.json_schema else None
        return named or self.schema_ or (self.value if self.type != "regex" else None)

    @model_validator(mode="after")
    def _a_schema_when_named(self) -> "ResponseFormat":
        schemas = sum(each is not None for each in (self.json_schema, self.schema_, self.value))
        if schemas > 1:
            raise ValueError("only one of 'json_schema', 'schema' and 'value' may be given")
        if self.json_schema is not None and self.type != "json_schema":
            raise ValueError("'json_schema' must be given with the type json_schema, and only with it")
        if self.type == "json_schema" and not schemas:
            raise ValueError("'json_schema' must be given with the type json_schema, and only with it")
        if self.type == "regex" and not (isinstance(self.value, str) and self.value):
            raise ValueError("'value' must be a regular expression with the type regex")
        if schemas and self.type == "text":
            raise ValueError("a schema is not allowed with the type text")
        return self


class GenerationRequest(ExtendedRequest):
    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    stream: bool | None = False
    """Stream the answer as server-sent events."""
    stream_options: ChunkOptions | None = None
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
        names = [*(["response_format"] if formed else []), *(form.param.partition(".")[0] for form in self.forms)]
        if len(names) > 1:
            raise InvalidRequest(f"'{names[1]}' and '{names[0]}' exclude each other.", param=names[1])
        return self

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        if (asked := self.stream_options) and asked.continuous_usage_stats and not asked.include_usage:
            message = "'stream_options.continuous_usage_stats' needs 'include_usage': true."
            raise InvalidRequest(message, param="stream_options.continuous_usage_stats")
        return self
