"""The bodies of `/admin`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from api.schemas.base import Items, Strict
from shared.domain.job import Priority


class ReplayRequest(Strict):
    """`since_s`: failed within so many seconds; `error`: a word of the failure's code or text; `rate_per_s`: jobs
    replayed a second, 0 for no limit. At least one of the four filters must be given, so that nobody replays
    everything by mistake; `model: "*"` says everything."""

    model: str = Field(min_length=1)
    """The model whose failed jobs are meant; `*` for all."""
    since_s: float | None = Field(None, gt=0)
    """Only jobs that failed within so many seconds."""
    error: str | None = Field(None, min_length=1)
    """Only jobs whose failure has this word in its code or text."""
    tenant: str | None = Field(None, min_length=1)
    """Only jobs of this tenant."""
    rate_per_s: float = Field(0, ge=0, le=1000)
    """Jobs replayed a second; 0 for no limit."""
    dry_run: bool = False
    """Only list the jobs that would be replayed."""


class KeyLimits(Strict):
    """What a key may use: 0 for no limit, no models for all. `expires_in_s`: from now; 0 for never. `priority`: the
    class of its jobs unless they ask for less."""

    name: str | None = Field(None, min_length=1, max_length=200)
    """A name for people."""
    models: Annotated[list[str], Items(1000)] | None = None
    """Models that the key may use; none for all."""
    requests_per_minute: int | None = Field(None, ge=0, lt=10**12)
    """Requests a minute; 0 for no limit."""
    tokens_per_minute: int | None = Field(None, ge=0, lt=10**12)
    """Tokens a minute; 0 for no limit."""
    concurrent_jobs: int | None = Field(None, ge=0, lt=10**12)
    """Jobs at a time; 0 for no limit."""
    tokens_per_month: int | None = Field(None, ge=0, lt=10**15)
    """Tokens a calendar month (UTC); 0 for no limit."""
    weight: float | None = Field(None, gt=0, le=1000)
    """The key's share beside other keys while all wait."""
    priority: str | None = Field(None, pattern="^(interactive|standard|batch)$")
    """The class of the key's jobs, unless they ask for less."""
    expires_in_s: int | None = Field(None, ge=0, le=10 * 366 * 86400)
    """The key's lifetime from now; 0 for ever."""

    @field_validator("models")
    @classmethod
    def _names(cls, models: list[str] | None) -> list[str] | None:
        if any(not name or name != "".join(name.split()) for name in models or ()):
            raise ValueError("names of models have no spaces")
        return models

    def changes(self, now_s: float) -> dict[str, Any]:
        """Fields of a key, of those that were given."""
        given = self.model_dump(exclude_none=True, exclude={"expires_in_s"})
        if self.models is not None:
            given["models"] = tuple(self.models)
        if self.priority is not None:
            given["priority"] = Priority(self.priority)
        if self.expires_in_s is not None:
            given["expires_s"] = int(now_s) + self.expires_in_s if self.expires_in_s else 0
        return given


class NewKey(KeyLimits):
    """`secret`: one that clients have already, at least 16 characters; made up without."""

    name: str = Field(min_length=1, max_length=200)
    """A name for people."""
    secret: str | None = Field(None, min_length=16, max_length=1000, pattern=r"^[!-~]+$")
    """A secret that clients have already, at least 16 characters. Made up when it is not given."""
