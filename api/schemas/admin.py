"""The bodies of `/admin`."""

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from api.schemas.base import Items, Strict
from shared.catalog.rerun import RERUN_MAX, Changes, Selection, sampling_changes
from shared.domain.job import Priority
from shared.domain.lifecycle import State


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


class RerunChanges(Strict):
    """A job is run again with these changes. All else stays as it was, the seed included."""

    to_model: str | None = Field(None, min_length=1)
    """The model that runs the job now, which may be an adapter's name."""
    priority: str | None = Field(None, pattern="^(interactive|standard|batch)$")
    """The class of the new job. One job keeps its own; several are run as batch."""
    temperature: float | None = Field(None, ge=0, le=2)
    """The temperature of the sampling."""
    top_p: float | None = Field(None, gt=0, le=1)
    """The probability mass that is sampled from."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """The number of likeliest tokens that are sampled from."""
    min_p: float | None = Field(None, ge=0, le=1)
    """The least probability of a token, as a part of the likeliest token's."""
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    """The factor by which tokens that came before are made less likely."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """What is taken from the logits of tokens that came before."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """What is taken for each time that a token came before."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The seed of the sampling."""
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    """The most tokens of each answer."""
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Items(16)] | None = None
    """The texts at which an answer stops."""

    def changes(self) -> Changes:
        given = self.model_dump(include=SAMPLED, exclude_none=True)
        priority = Priority(self.priority) if self.priority else None
        return Changes(model=self.to_model, priority=priority, sampling=sampling_changes(given.items()))


SAMPLED = set(RerunChanges.model_fields) - {"to_model", "priority"}


class RerunRequest(RerunChanges):
    """The jobs to run again: either `jobs`, or those of a `model`."""

    jobs: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Items(RERUN_MAX)] | None = None
    """The ids of the jobs."""
    model: str | None = Field(None, min_length=1)
    """The model whose jobs are run again; `*` selects all models."""
    state: State = State.FINISHED
    """The state of the selected jobs."""
    since_s: float | None = Field(None, gt=0)
    """Select only jobs that came within this many seconds."""
    tenant: str | None = Field(None, min_length=1)
    """Select only jobs of this tenant."""
    limit: int = Field(RERUN_MAX, ge=1, le=RERUN_MAX)
    """Select at most this many jobs, the newest."""
    dry_run: bool = False
    """Only list the jobs that would be run again."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if bool(self.jobs) == bool(self.model):
            raise ValueError("either 'jobs' or 'model' must be given")
        return self

    def selection(self) -> Selection:
        assert self.model, "without ids there is a model"
        return Selection(model=self.model, state=self.state, since_s=self.since_s, tenant=self.tenant, limit=self.limit)


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
