"""The bodies of `/admin`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from api.schemas.base import Items, Strict
from shared.job import Priority


class ReplayRequest(Strict):
    """`since_s`: failed within so many seconds; `error`: a word of the failure's code or text; `rate_per_s`: jobs
    replayed a second, 0 for no limit. At least one of the four filters must be given, so that nobody replays
    everything by mistake; `model: "*"` says everything."""

    model: str = Field(min_length=1)
    since_s: float | None = Field(None, gt=0)
    error: str | None = Field(None, min_length=1)
    tenant: str | None = Field(None, min_length=1)
    rate_per_s: float = Field(0, ge=0, le=1000)
    dry_run: bool = False


class KeyLimits(Strict):
    """What a key may use: 0 for no limit, no models for all. `expires_in_s`: from now; 0 for never. `priority`: the
    class of its jobs unless they ask for less."""

    name: str | None = Field(None, min_length=1, max_length=200)
    models: Annotated[list[str], Items(1000)] | None = None
    requests_per_minute: int | None = Field(None, ge=0, lt=10**12)
    tokens_per_minute: int | None = Field(None, ge=0, lt=10**12)
    concurrent_jobs: int | None = Field(None, ge=0, lt=10**12)
    tokens_per_month: int | None = Field(None, ge=0, lt=10**15)
    weight: float | None = Field(None, gt=0, le=1000)
    priority: str | None = Field(None, pattern="^(interactive|standard|batch)$")
    expires_in_s: int | None = Field(None, ge=0, le=10 * 366 * 86400)

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
    secret: str | None = Field(None, min_length=16, max_length=1000, pattern=r"^[!-~]+$")
