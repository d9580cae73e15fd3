"""The options of the upstream engine: where its upstreams are, and what may be asked of them."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from shared.domain.errors import SettingsError
from workers.engines.upstream.providers import PROVIDERS, Provider, provider_at

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
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


def _provider(name: str) -> str:
    if name and name not in PROVIDERS:
        raise ValueError(f"it must be one of {', '.join(PROVIDERS)}")
    return name


Url = Annotated[str, AfterValidator(_address)]


class Terms(BaseModel):
    """The terms that hold for all upstreams together, or for one. `model` is its own name of the model. Limits of 0 are
    none; they hold for all workers together that use the same URL with the same key and model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Annotated[str, AfterValidator(_provider)] = ""
    key: Annotated[str, AfterValidator(_secret)] = ""
    model: str = ""
    requests_per_minute: int = Field(0, ge=0)
    tokens_per_minute: int = Field(0, ge=0)
    requests_at_once: int = Field(0, ge=0)


class Target(Terms):
    """One upstream."""

    url: Url

    @property
    def kind(self) -> Provider:
        return PROVIDERS[self.provider] if self.provider else provider_at(self.url)

    def secret(self, environment: Mapping[str, str] = os.environ) -> str:
        """The key; '' if it has none. Raises SettingsError for a variable that is not set."""
        if not self.key:
            return ""
        found = SECRET.fullmatch(self.key)
        assert found, "validated"
        if not (value := environment.get(found[1], "").strip()):
            raise SettingsError(f"ENGINE_OPTION key: the variable {found[1]} is not set")
        return value

    @property
    def shown(self) -> str:
        """Its name in errors, logs and metrics, which is its host."""
        return urlsplit(self.url).netloc


class UpstreamOptions(Terms):
    """`urls` are asked in their order, each with terms of its own where it has some. `tokenizer` is the folder or hub
    id of the model's tokenizer: token ids go out and come back then, by the protocol `tokens`, and any answer is
    continued exactly. `serves` says what may be asked for, if it is not what the providers are known to serve.
    `silence_s` is the longest time without a byte of an answer."""

    urls: list[Target] = Field(min_length=1, max_length=URLS_MAX)
    resume: Literal["", "prefill", "restart", "repeat"] = ""
    tokenizer: str = ""
    context_length: int = Field(0, ge=0)
    silence_s: float = Field(120, gt=0, le=3600)
    serves: list[Literal["chat", "complete", "embed", "rerank"]] = []
    tokens: Literal["completions", "llamacpp"] = "completions"

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, data: object) -> object:
        """One URL is a list of one, and a URL is an object that says nothing else."""
        if not isinstance(data, dict) or not isinstance(urls := data.get("urls"), str | dict | list):
            return data
        each = urls if isinstance(urls, list) else [urls]
        return {**data, "urls": [{"url": url} if isinstance(url, str) else url for url in each]}

    @property
    def targets(self) -> list[Target]:
        """The upstreams, each with what is said of all where it says nothing itself."""
        common = {name: getattr(self, name) for name in Terms.model_fields if name in self.model_fields_set}
        return [
            each.model_copy(update={n: v for n, v in common.items() if n not in each.model_fields_set})
            for each in self.urls
        ]
