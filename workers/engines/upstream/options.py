"""The options of the upstream engine: where its upstreams are, and what may be asked of them."""

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from shared.domain.errors import SettingsError
from shared.models_file.secrets import SECRET
from shared.models_file.upstreams import URLS_MAX, Upstream, UpstreamTerms
from workers.engines.upstream.providers import PROVIDERS, Provider, provider_at


class Terms(UpstreamTerms):
    """The terms that hold for all upstreams together, or for one."""

    @field_validator("provider")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and name not in PROVIDERS:
            raise ValueError(f"it must be one of {', '.join(PROVIDERS)}")
        return name


class Target(Terms, Upstream):
    """One upstream."""

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
    serves: list[Literal["chat", "complete", "embed", "rerank"]] = Field([])
    tokens: Literal["completions", "generate", "llamacpp"] = "completions"

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
