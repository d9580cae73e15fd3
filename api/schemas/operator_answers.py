"""The bodies of answers about jobs, keys and models, most of them of `/admin`, as the documentation shows them."""

from typing import Literal

from pydantic import BaseModel


class JobObject(BaseModel):
    """A job. A queued one has its place, as an estimate; and if its model is on a host, the model's state, and how long
    it may still be loaded."""

    id: str
    object: Literal["job"]
    model: str
    status: str
    priority: str
    attempts: int
    enqueued_at: str
    started_at: str | None
    ended_at: str | None
    not_before: float | None
    deadline: float | None
    replay_of: str | None
    replayed_as: str | None
    created: int | None = None
    position: int | None = None
    tokens_ahead: int | None = None
    estimated_wait_s: float | None = None
    model_state: str | None = None
    load_left_s: float | None = None


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


class RerunJob(BaseModel):
    """A job that was run again as `rerun_as`. `refused` says why it was not. A dry run leaves out `rerun_as`."""

    job: str
    rerun_as: str | None = None
    refused: str | None = None


class RerunJobs(BaseModel):
    object: Literal["list"]
    data: list[RerunJob]


class ComparedJob(BaseModel):
    """A job as it is compared: `waited_s` is the time until its first claim, and `took_s` that from there to its
    end."""

    job: str
    model: str
    status: str
    outcome: str | None
    finish_reasons: list[str]
    priority: str
    attempts: int
    prompt_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    completion_tokens: int
    cost_micros: int | None
    waited_s: float | None
    took_s: float | None
    tokens_per_s: float | None


class JobComparison(BaseModel):
    """Two jobs, and the unified difference of their texts by lines, cut off if it is too long."""

    object: Literal["job.comparison"]
    jobs: list[ComparedJob]
    same: bool
    diff: list[str]
    truncated: bool


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
    """An API key. `secret` is shown only when the key is created. The cost is by model, in millionths of the currency
    of the upstreams' prices."""

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
    cost_micros_this_month: dict[str, int]
    secret: str | None = None


class KeyList(BaseModel):
    object: Literal["list"]
    data: list[KeyObject]


class PausedModel(BaseModel):
    model: str
    paused: bool


class ModelOnHost(BaseModel):
    """A model as one host has it. Times are seconds since 1970. `memory_bytes` and `load_s` are null until they were
    measured. It is unloaded at `unloads_at` if it stays idle, and an operator wants it kept until `kept_until`."""

    host: str
    hostname: str
    source: str
    state: Literal["configured", "loading", "ready", "draining", "asleep", "failed"]
    reason: str
    phase: str
    progress: float
    progress_estimated: bool
    memory_bytes: int | None
    load_s: float | None
    since: float
    unloads_at: float | None
    kept_until: float | None
    pinned: bool
    workers: int
    workers_least: int
    workers_most: int


class ModelState(BaseModel):
    """A model and its state on the host that serves it first; `absent` if no host has it and no worker serves it.
    `reason` says why its last load failed. `engine` and `context_length` are empty until it was loaded once."""

    id: str
    object: Literal["model"]
    state: Literal["configured", "loading", "ready", "draining", "asleep", "failed", "absent"]
    reason: str
    engine: str
    context_length: int
    workers: int
    waiting_jobs: int
    paused: bool
    hosts: list[ModelOnHost]


class ModelStates(BaseModel):
    object: Literal["list"]
    data: list[ModelState]


class OrderObject(BaseModel):
    """An order to a host. It is `open` until it is carried out, or `error` says why it was not."""

    id: str
    object: Literal["order"]
    host: str
    verb: Literal["load", "unload", "switch", "keep"]
    model: str
    status: Literal["open", "done", "failed"]
    error: str | None


class OrderList(BaseModel):
    object: Literal["list"]
    data: list[OrderObject]


class RunningModel(BaseModel):
    model: str
    state: Literal["starting", "ready", "stopping"]
    ttl: int
    cmd: str
    proxy: str
    name: str
    description: str


class RunningModels(BaseModel):
    running: list[RunningModel]


class Unloaded(BaseModel):
    msg: Literal["ok"]
