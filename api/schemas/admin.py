"""The bodies of `/admin`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from api.schemas.base import Items, Strict
from shared.domain.job import Priority


class ReplayRequest(Strict):
    """A filter of failed jobs to replay. `model` is required, so that nobody replays all jobs by mistake; `*` selects
    all models. The other filters are optional and narrow the selection."""

    model: str = Field(min_length=1)
    """The model whose failed jobs are replayed; `*` selects all models."""
    since_s: float | None = Field(None, gt=0)
    """Select only jobs that failed within this many seconds."""
    error: str | None = Field(None, min_length=1)
    """Select only jobs whose failure contains this text in its code or message."""
    tenant: str | None = Field(None, min_length=1)
    """Select only jobs of this tenant."""
    rate_per_s: float = Field(0, ge=0, le=1000)
    """The number of jobs replayed a second; 0 is no limit."""
    to_model: str | None = Field(None, min_length=1)
    """The model that runs the jobs now; without it, each job's own. A job that it cannot serve is not replayed."""
    dry_run: bool = False
    """Only list the jobs that would be replayed."""


class KeyLimits(Strict):
    """The limits and properties of an API key. A limit of 0 is no limit."""

    name: str | None = Field(None, min_length=1, max_length=200)
    """The key's name, for people."""
    models: Annotated[list[str], Items(1000)] | None = None
    """The models that the key may use; an empty list allows all."""
    requests_per_minute: int | None = Field(None, ge=0, lt=10**12)
    """The most requests a minute; 0 is no limit."""
    tokens_per_minute: int | None = Field(None, ge=0, lt=10**12)
    """The most tokens a minute; 0 is no limit."""
    concurrent_jobs: int | None = Field(None, ge=0, lt=10**12)
    """The most jobs at a time; 0 is no limit."""
    tokens_per_month: int | None = Field(None, ge=0, lt=10**15)
    """The most tokens a calendar month (UTC); 0 is no limit."""
    weight: float | None = Field(None, gt=0, le=1000)
    """The key's share beside other keys while all have jobs waiting."""
    priority: str | None = Field(None, pattern="^(interactive|standard|batch)$")
    """The class of the key's jobs, unless they ask for a lower one."""
    expires_in_s: int | None = Field(None, ge=0, le=10 * 366 * 86400)
    """The key's lifetime from now, in seconds; 0 is for ever."""

    @field_validator("models")
    @classmethod
    def _names(cls, models: list[str] | None) -> list[str] | None:
        if any(not name or name != "".join(name.split()) for name in models or ()):
            raise ValueError("names of models must not contain spaces")
        return models

    def changes(self, now_s: float) -> dict[str, Any]:
        """Return the given values as fields of a key."""
        given = self.model_dump(exclude_none=True, exclude={"expires_in_s"})
        if self.models is not None:
            given["models"] = tuple(self.models)
        if self.priority is not None:
            given["priority"] = Priority(self.priority)
        if self.expires_in_s is not None:
            given["expires_s"] = int(now_s) + self.expires_in_s if self.expires_in_s else 0
        return given


class NewKey(KeyLimits):
    """The properties of a new API key."""

    name: str = Field(min_length=1, max_length=200)
    """The key's name, for people."""
    secret: str | None = Field(None, min_length=16, max_length=1000, pattern=r"^[!-~]+$")
    """A secret that clients have already, of at least 16 characters. Generated when it is not given."""
