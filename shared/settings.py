"""Every setting, read once at the start of a process. A bad value stops the start and names its key."""

import difflib
from collections.abc import Iterable, Iterator

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.errors import SettingsError

PREFIX = "PENSTOCK_"


class Settings(BaseSettings):
    """Frozen. Each field is the environment variable PENSTOCK_<NAME>; docs/settings.md lists them all."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="where the queue lives")
    shard_urls: str = Field(
        "", description="for the API: more Redis, separated by spaces, each with the models of the workers there"
    )
    redis_wait_s: float = Field(60, ge=0, description="how long a process that starts waits for a Redis that is away")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the API listens on")
    worker_host: str = Field("127.0.0.1", description="address of a worker's health and metrics")
    worker_port: int = Field(0, ge=0, le=65535, description="port of a worker's health and metrics; 0 picks a free one")
    otlp_endpoint: str = Field(
        "", description="where OpenTelemetry traces go, like http://collector:4318; empty for nowhere"
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")

    queue_jobs_max: int = Field(10_000, ge=1, description="jobs that may wait per model before 429")
    queue_tokens_max: int = Field(20_000_000, ge=1, description="tokens that may wait per model, as far as can be told")
    queue_bytes_max: int = Field(
        200_000_000, ge=1, description="bytes of requests that may wait per model, as they lie in Redis"
    )
    redis_memory_share: float = Field(
        0.85, gt=0, le=1, description="share of Redis's memory above which nothing enters"
    )
    default_priority: str = Field(
        "standard", pattern="^(interactive|standard|batch)$", description="interactive, standard or batch"
    )
    tenant_weights: str = Field("", description="shares of tenants beside 1, like key-1f2e3d4c5b6a=4,anonymous=0.5")
    queue_deadline_s: float = Field(600, gt=0, description="how long a standard job may wait before it expires")
    interactive_queue_deadline_s: float = Field(120, gt=0, description="the same for an interactive one")
    batch_queue_deadline_s: float = Field(86400, gt=0, description="the same for one of a batch")
    run_deadline_s: float = Field(3600, gt=0, description="how long a standard job may take from its first claim")
    interactive_run_deadline_s: float = Field(600, gt=0, description="the same for an interactive one")
    batch_run_deadline_s: float = Field(86400, gt=0, description="the same for one of a batch")
    grace_s: float = Field(0, ge=0, description="how long a job goes on after its client has left")
    idempotent_grace_s: float = Field(30, ge=0, description="the same for one with an Idempotency-Key")
    durability: str = Field(
        "fast",
        pattern="^(fast|safe|durable)$",
        description="before a job is accepted: fast asks for nothing, safe for it on disk, durable on a replica",
    )
    keys: str = Field(
        "auto",
        pattern="^(auto|required|off)$",
        description="API keys: required, off, or auto, which requires them unless the API listens on loopback only",
    )
    admin_key: str = Field("", description="bearer token of /admin; empty for no /admin")
    lease_ms: int = Field(3000, ge=500, description="silence after which a worker's jobs are taken over")
    heartbeat_ms: int = Field(1000, ge=100, description="how often a worker renews its leases")
    target_wait_s: float = Field(10, gt=0, description="longest wait in the queue that `workers_wanted` aims at")
    attempts_max: int = Field(3, ge=1, description="claims of a job that does not get on before it fails as poison")
    job_ttl_s: int = Field(3600, ge=1, description="how long an ended job and its events are kept")
    failed_ttl_s: int = Field(7 * 86400, ge=1, description="how long a failed job is kept for replay")

    header_bytes_max: int = Field(65_536, ge=1000, description="largest head of a request")
    request_timeout_s: float = Field(60, gt=0, description="for a request to arrive whole")
    send_timeout_s: float = Field(120, gt=0, description="for a client to take what is sent, before it counts as gone")
    body_bytes_max: int = Field(4_000_000, ge=1000, description="largest request body")
    response_ttl_s: int = Field(86400, ge=1, le=7 * 86400, description="lifetime of stored responses and chats")
    stored_bytes_max: int = Field(
        100_000_000, ge=1000, description="bytes of stored responses and chats that one key may have"
    )
    webhook_private: bool = Field(False, description="webhooks may go to private addresses, and without TLS")
    files: str = Field(".penstock/files", description="folder of uploaded files, the same for every API process")
    file_bytes_max: int = Field(200_000_000, ge=1000, description="largest uploaded file")
    files_bytes_max: int = Field(
        2_000_000_000,
        ge=1,
        description="bytes of uploaded and written files that one key may have; a file counts as 4096 at least",
    )
    file_ttl_s: int = Field(30 * 86400, ge=0, description="lifetime of files that ask for none; 0 for ever")
    batch_requests: int = Field(64, ge=1, description="requests of one batch that are jobs at a time")
    batches_at_once: int = Field(4, ge=1, description="batches of one key that are worked on at a time; others wait")
    batches_open_max: int = Field(100, ge=1, description="batches of one key that may not have ended before 429")
    choices_max: int = Field(16, ge=1, description="largest n of a request")
    first_event_ms: int = Field(
        1000, ge=0, description="longest wait for the first token before the headers of a stream go out"
    )
    keep_alive_s: float = Field(15, gt=0, description="pause between comments on a silent stream")
    silence_ms: int = Field(1000, ge=50, description="silence after which a stream is checked against its log")
    stream_buffer_max: int = Field(1024, ge=1, description="events held in memory for one slow reader")
    drain_s: float = Field(10, ge=0, description="time for running work to end before a worker hands it back")
    cors_origins: str = Field(
        "auto",
        description="comma-separated origins that browsers may call from; empty for none, * for any; auto: any where"
        " keys are required, else pages of this machine",
    )
    allowed_hosts: str = Field(
        "",
        description="comma-separated names under which an API without keys may be asked, beside this machine's own; *"
        " for any; empty: any unless it listens on loopback only",
    )
    docs: bool = Field(True, description="whether the API has /docs, /redoc and /openapi.json")
    metrics: bool = Field(True, description="whether the API has /metrics")

    sequences_max: int = Field(32, ge=1, description="sequences in one batch")
    batch_tokens_max: int = Field(512, ge=1, description="tokens computed in one step, decoding and prompts together")
    kv_cache_gib: float = Field(0, ge=0, description="memory for keys and values; 0 takes part of what is free")
    prefix_cache: bool = Field(True, description="share what prompts that begin alike have in common")
    prefix_cache_shared: bool = Field(
        False, description="share it among tenants, too; who guesses the beginning of another's prompt can tell"
    )
    deterministic: bool = Field(False, description="same tokens bit for bit alone, batched and resumed; slower prompts")
    context_length: int = Field(0, ge=0, description="longest prompt plus answer; 0 takes the model's own")
    outbox_steps_max: int = Field(
        256, ge=1, description="engine steps not yet written to Redis before the engine waits"
    )
    idle_wait_ms: int = Field(250, ge=10, description="longest pause of an idle worker between looks at the queue")
    step_timeout_s: float = Field(120, gt=0, description="an engine step longer than this ends the worker")
    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$", description="numbers of the weights")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ..")
    device_map: str = Field(
        "",
        pattern="^(|auto|balanced|balanced_low_0|sequential)$",
        description="how to spread a model over devices: auto, balanced, balanced_low_0 or sequential; empty for one",
    )
    max_memory: str = Field("", description="limits of a spread model, like 0=20GiB,cpu=64GiB")
    quantization: str = Field(
        "",
        pattern="^(|bitsandbytes-int8|bitsandbytes-nf4)$",
        description="quantise at loading: bitsandbytes-int8 or bitsandbytes-nf4",
    )
    hub: str = Field("huggingface", pattern="^(huggingface|modelscope)$", description="huggingface or modelscope")
    revision: str = Field("", description="revision of a hub model")
    trust_remote_code: bool = Field(False, description="run Python code that a model's folder brings")
    scripted_step_ms: float = Field(0, ge=0, description="scripted engine: duration of a step")
    scripted_tokens: int = Field(64, ge=1, description="scripted engine: length of an answer without max_tokens")

    @property
    def redis_urls(self) -> list[str]:
        """Those of the API: the home of all that belongs to no model first."""
        return [self.redis_url, *self.shard_urls.split()]

    def queue_deadline(self, priority: str) -> float:
        """Seconds."""
        return float(getattr(self, self._named("queue_deadline_s", priority)))

    def run_deadline(self, priority: str) -> float:
        """Seconds."""
        return float(getattr(self, self._named("run_deadline_s", priority)))

    @staticmethod
    def _named(field: str, priority: str) -> str:
        return field if priority == "standard" else f"{priority}_{field}"


def load_settings(**overrides: object) -> Settings:
    """The environment, under `overrides` that are not None. Raises SettingsError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "PENSTOCK_" + str(first["loc"][0]).upper()
        raise SettingsError(f"{name}: {first['msg']} (got {first['input']!r})") from error


def unknown_variables(names: Iterable[str]) -> Iterator[str]:
    """A sentence for each environment variable that looks like a setting and is none, with the nearest one's name."""
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(names):
        setting = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            meant = f"; is {PREFIX}{near[0]} meant?" if near else ", whose settings are listed in docs/settings.md"
            yield f"{name} is no setting of Penstock{meant}"
