"""An upstream of a model: a server that computes it by OpenAI's API, and the terms on which it may be asked."""

from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.domain.events import Usage
from shared.models_file.secrets import SECRET

URLS_MAX = 32


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must begin with http:// or https:// and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("it must be without user, password and query; a key is given by key=${env:NAME}")
    return url.rstrip("/")


def _secret(text: str) -> str:
    if text and not SECRET.fullmatch(text):
        raise ValueError("it must be ${env:NAME}, the name of the variable that holds it")
    return text


Ability = Literal["tools", "structured_outputs", "images", "audio", "video", "files", "logprobs", "logit_bias"]
Url = Annotated[str, AfterValidator(_address)]
Secret = Annotated[str, AfterValidator(_secret)]


PriceOfMillion = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class Price(BaseModel):
    """The prices of a million tokens, all in one currency, which nothing names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: PriceOfMillion = Field(description="of a prompt")
    cached_input: PriceOfMillion | None = Field(
        default=None, description="of a prompt's cached part, if it is not the same"
    )
    output: PriceOfMillion = Field(default=0, description="of an answer, with its reasoning")

    def cost_micros(self, usage: Usage) -> int:
        """Return what this usage costs, in millionths of the currency, rounded up."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_input = self.input if self.cached_input is None else self.cached_input
        counts = (usage.prompt_tokens - cached, cached, usage.completion_tokens)
        prices = (self.input, cached_input, self.output)  # per million tokens, so millionths per token
        exact = sum(count * Decimal(str(price)) for count, price in zip(counts, prices, strict=True))
        return int(Decimal(exact).to_integral_value(ROUND_CEILING))


class UpstreamTerms(BaseModel):
    """The terms that hold for all upstreams together, or for one. Limits of 0 are none; they hold for all workers
    together that use the same URL with the same key and model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str = Field("", description="the provider's name, if its host does not tell it")
    key: Secret = Field("", description="${env:NAME}, the environment variable that holds the key")
    model: str = Field("", description="the upstream's own name of the model, if it is another")
    requests_per_minute: int = Field(0, ge=0, description="requests that may be sent in a minute; 0 for no limit")
    tokens_per_minute: int = Field(0, ge=0, description="tokens that may be asked for in a minute; 0 for no limit")
    requests_at_once: int = Field(0, ge=0, description="requests that may run at a time; 0 for no limit")
    lacks: list[Ability] = Field(
        [], max_length=10, description="what the model cannot do, like images: a request for it is refused by its name"
    )
    price: Price | None = Field(None, description="what a million tokens cost: `input`, `cached_input`, `output`")


class Upstream(UpstreamTerms):
    """One upstream."""

    url: Url = Field(description="its base URL, like https://api.openai.com/v1")
