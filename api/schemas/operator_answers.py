"""The bodies of answers about jobs, keys and models, most of them of `/admin`, as the documentation shows them."""

from typing import Literal

from pydantic import BaseModel


class JobObject(BaseModel):
    id: str
    object: Literal["job"]
    model: str
    status: str
    priority: str
    attempts: int
    enqueued_at: str
    started_at: str | None
    ended_at: str | None
    replay_of: str | None
    replayed_as: str | None
    created: int | None = None


class JobList(BaseModel):
    object: Literal["list"]
    data: list[JobObject]


class JobMoment(BaseModel):
    at_ms: int
    what: str


class JobHistory(JobObject):
    tenant: str
    worker: str | None
    traceback: str | None
    timeline: list[JobMoment]


class ReplayedJob(BaseModel):
    """A replayed job. A dry run leaves out `status` and `replayed_as`. `refused` says why the model that the replay
    goes to cannot serve the job."""

    job: str
    status: str | None = None
    replayed_as: str | None = None
    refused: str | None = None


class ReplayedJobs(BaseModel):
    object: Literal["list"]
    data: list[ReplayedJob]


class DemandObject(BaseModel):
    object: Literal["demand"]
    model: str
    waiting_jobs: dict[str, int]
    waiting_tokens: int
    running_jobs: int
    oldest_waiting_s: float
    workers: int
    worker_tokens_per_s: float
    target_wait_s: float
    workers_wanted: int


class DemandList(BaseModel):
    """The demand of the requested models; without `model`, of every known model."""

    object: Literal["list"]
    data: list[DemandObject]


class KeyObject(BaseModel):
    """An API key. `secret` is shown only when the key is created."""

    object: Literal["api_key"]
    id: str
    name: str
    created_s: int
    expires_s: int
    models: list[str]
    requests_per_minute: int
    tokens_per_minute: int
    concurrent_jobs: int
    tokens_per_month: int
    weight: float
    priority: str
    tokens_this_month: int
    secret: str | None = None


class KeyList(BaseModel):
    object: Literal["list"]
    data: list[KeyObject]


class PausedModel(BaseModel):
    model: str
    paused: bool
