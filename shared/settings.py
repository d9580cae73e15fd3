"""Every setting, read once at the start of a process. A bad value stops the start and names its key."""

import difflib
from collections.abc import Iterable, Iterator

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.daily_window import daily_window
from shared.domain.errors import SettingsError

PREFIX = "PENSTOCK_"


class Settings(BaseSettings):
    """The frozen settings of a process. Each field is the environment variable PENSTOCK_<NAME>; docs/settings.md lists
    them all."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="URL of the Redis that holds the queue")
    shard_urls: str = Field(
        "",
        description="for the API: URLs of further Redis, separated by spaces; each has the models of its own workers",
    )
    redis_wait_s: float = Field(60, ge=0, description="how long a starting process waits for a Redis that is away")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the API listens on")
    worker_host: str = Field("127.0.0.1", description="address of a worker's health and metrics endpoints")
    worker_port: int = Field(0, ge=0, le=65535, description="port of these endpoints; 0 picks a free one")
    otlp_endpoint: str = Field(
        "", description="collector of OpenTelemetry traces, like http://collector:4318; empty for none"
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")

    queue_jobs_max: int = Field(10_000, ge=1, description="jobs that may wait per model; more get 429")
    queue_tokens_max: int = Field(20_000_000, ge=1, description="estimated tokens that may wait per model")
    queue_bytes_max: int = Field(200_000_000, ge=1, description="bytes of requests in Redis that may wait per model")
    redis_memory_share: float = Field(
        0.85, gt=0, le=1, description="share of Redis's memory above which no job is accepted"
    )
    default_priority: str = Field(
        "standard",
        pattern="^(interactive|standard|batch)$",
        description="class of jobs that ask for none: interactive, standard or batch",
    )
    tenant_weights: str = Field(
        "", description="shares of tenants, 1 where none is given, like key-1f2e3d4c5b6a=4,anonymous=0.5"
    )
    queue_deadline_s: float = Field(600, gt=0, description="how long a standard job may wait before it expires")
    interactive_queue_deadline_s: float = Field(120, gt=0, description="the same for an interactive job")
    batch_queue_deadline_s: float = Field(86400, gt=0, description="the same for a job of a batch")
    run_deadline_s: float = Field(3600, gt=0, description="how long a standard job may run, from its first claim")
    interactive_run_deadline_s: float = Field(600, gt=0, description="the same for an interactive job")
    batch_run_deadline_s: float = Field(86400, gt=0, description="the same for a job of a batch")
    grace_s: float = Field(0, ge=0, description="how long a job runs on after its client has left")
    idempotent_grace_s: float = Field(30, ge=0, description="the same for a job with an Idempotency-Key")
    durability: str = Field(
        "fast",
        pattern="^(fast|safe|durable)$",
        description="what confirms a job before it is accepted: fast nothing, safe the disk, durable a replica",
    )
    keys: str = Field(
        "auto",
        pattern="^(auto|required|off)$",
        description="API keys: required, off, or auto, which requires them unless the API listens on loopback only",
    )
    admin_key: str = Field("", description="bearer token of /admin; empty disables /admin")
    lease_ms: int = Field(3000, ge=500, description="silence after which a worker's jobs are taken over")
    heartbeat_ms: int = Field(1000, ge=100, description="how often a worker renews its leases")
    target_wait_s: float = Field(10, gt=0, description="queue wait that `workers_wanted` aims at")
    attempts_max: int = Field(3, ge=1, description="claims without progress before a job fails as poison")
    job_ttl_s: int = Field(3600, ge=1, description="how long an ended job and its events are kept")
    keep_requests: bool = Field(
        False,
        description="whether the API keeps the requests of ended jobs, too, as long as the jobs, so that `penstock jobs"
        " rerun` can run them again; those of failed jobs are always kept",
    )
    failed_ttl_s: int = Field(7 * 86400, ge=1, description="how long a failed job is kept for replay")

    header_bytes_max: int = Field(
        65_536, ge=1000, description="largest head of a request: its request line and headers"
    )
    request_timeout_s: float = Field(60, gt=0, description="how long a request may take to arrive completely")
    send_timeout_s: float = Field(120, gt=0, description="how long a client may stop reading before it is cut off")
    body_bytes_max: int = Field(4_000_000, ge=1000, description="largest request body")
    response_ttl_s: int = Field(
        86400, ge=1, le=7 * 86400, description="lifetime of stored responses, chats and conversations"
    )
    stored_bytes_max: int = Field(
        100_000_000, ge=1000, description="bytes of stored responses, chats and conversations per key"
    )
    webhook_private: bool = Field(False, description="whether webhooks may go to private addresses, and without TLS")
    files: str = Field(".penstock/files", description="folder of uploaded files, shared by all API processes")
    file_bytes_max: int = Field(200_000_000, ge=1000, description="largest uploaded file")
    files_bytes_max: int = Field(
        2_000_000_000,
        ge=1,
        description="bytes of uploaded and written files per key; a file counts as 4096 at least",
    )
    file_ttl_s: int = Field(30 * 86400, ge=0, description="lifetime of files that ask for none; 0 is for ever")
    batch_requests: int = Field(64, ge=1, description="requests of a batch that are enqueued at a time")
    batch_window: str = Field(
        "",
        description="time of day at which requests of batches are enqueued, like `22:00-06:00 Europe/Berlin`; empty for"
        " any",
    )
    batches_at_once: int = Field(4, ge=1, description="batches per key that run at a time; others wait")
    batches_open_max: int = Field(100, ge=1, description="unfinished batches per key; more get 429")
    choices_max: int = Field(16, ge=1, description="largest n of a request")
    max_tokens: str = Field(
        "clamp",
        pattern="^(clamp|strict)$",
        description="what happens to a max_tokens that does not fit beside the prompt: clamp lowers it, strict refuses"
        " it",
    )
    moderation_url: str = Field(
        "", description="server of OpenAI's moderation that /v1/moderations asks, like https://host/v1/moderations"
    )
    moderation_key: str = Field("", description="bearer token of the moderation server; empty for none")
    moderation_timeout_s: float = Field(5, gt=0, description="how long the moderation server may take for an answer")
    moderated_inputs: str = Field(
        "off",
        pattern="^(off|open|closed)$",
        description="whether inputs of chats, completions, responses and messages are moderated before they are"
        " accepted: off; open accepts them while the moderation server gives no answer; closed refuses them then",
    )
    hosted_tools: str = Field(
        "tell",
        pattern="^(tell|refuse)$",
        description="what happens to tools of a response or a message that would run on the server, like web_search:"
        " tell answers without them and tells the model that there are none, refuse refuses the request",
    )
    first_event_ms: int = Field(
        1000, ge=0, description="longest wait for the first token before a stream sends its headers"
    )
    keep_alive_s: float = Field(15, gt=0, description="time between comments on a silent stream")
    silence_ms: int = Field(1000, ge=50, description="silence after which a stream is compared with its job's log")
    stream_buffer_max: int = Field(1024, ge=1, description="events buffered in memory for one slow reader")
    drain_s: float = Field(
        10, ge=0, description="time for running jobs to end before a stopping worker hands them back"
    )
    cors_origins: str = Field(
        "auto",
        description="comma-separated origins that browsers may call from; empty for none, * for any; auto allows any"
        " if keys are required, else pages of this machine",
    )
    allowed_hosts: str = Field(
        "",
        description="comma-separated host names that an API without keys answers to, beside this machine's own; * for"
        " any; empty allows any unless the API listens on loopback only",
    )
    docs: bool = Field(True, description="whether the API serves /docs, /redoc and /openapi.json")
    metrics: bool = Field(True, description="whether the API serves /metrics")

    models: str = Field("", description="models file, which says what is served; empty for none")
    engine: str = Field(
        "", description="engine that computes the models of a worker; empty takes the one that fits each source"
    )
    engine_options: str = Field(
        "", description='options that only this engine knows: a JSON object, like {"key": "value"}'
    )
    recommended: str = Field(
        "",
        description="sampling parameters of a worker for what a request leaves open: a JSON object, like"
        ' {"temperature": 0.7}',
    )
    sequences_max: int = Field(
        32, ge=1, description="sequences in one engine step; on a CUDA device 256 unless this is set"
    )
    batch_tokens_max: int = Field(
        512,
        ge=1,
        description="tokens computed in one step, decode and prefill together; on a CUDA device 8192 unless this is"
        " set",
    )
    kv_cache_gib: float = Field(0, ge=0, description="memory of the KV cache; 0 takes a part of the free memory")
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="part of a CUDA device's memory that a worker takes: weights, the largest step and the KV cache",
    )
    tf32: bool = Field(
        False, description="whether float32 matrices are multiplied in TF32 on a CUDA device: faster, to 3 digits"
    )
    prefix_cache: bool = Field(True, description="whether prompts share the KV cache of a common prefix")
    prefix_cache_shared: bool = Field(
        False, description="whether tenants share it, too; a tenant could then detect the beginning of another's prompt"
    )
    deterministic: bool = Field(False, description="bitwise the same result alone, batched and resumed; slows prefill")
    context_length: int = Field(
        0, ge=0, description="most tokens of a prompt and its answer; 0 takes the model's limit"
    )
    outbox_steps_max: int = Field(
        256, ge=1, description="engine steps not yet written to Redis at which the engine pauses"
    )
    idle_wait_ms: int = Field(250, ge=10, description="longest time between an idle worker's looks at the queue")
    step_timeout_s: float = Field(120, gt=0, description="an engine step longer than this ends the worker")
    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$", description="number format of the weights")
    device: str = Field("auto", description="device of the model: auto, cpu, cuda, cuda:1, mps, ...")
    device_map: str = Field(
        "",
        pattern="^(|auto|balanced|balanced_low_0|sequential)$",
        description="how to spread a model over devices: auto, balanced, balanced_low_0 or sequential; empty uses one",
    )
    max_memory: str = Field("", description="memory per device for a spread model, like 0=20GiB,cpu=64GiB")
    quantization: str = Field(
        "",
        pattern="^(|bitsandbytes-int8|bitsandbytes-nf4)$",
        description="quantisation at loading: bitsandbytes-int8 or bitsandbytes-nf4; empty for none",
    )
    hub: str = Field(
        "huggingface", pattern="^(huggingface|modelscope)$", description="model hub: huggingface or modelscope"
    )
    revision: str = Field("", description="revision of a hub model")
    trust_remote_code: bool = Field(False, description="whether to run Python code from a model's folder")
    scripted_step_ms: float = Field(0, ge=0, description="scripted engine: duration of a step")
    scripted_tokens: int = Field(64, ge=1, description="scripted engine: length of an answer without max_tokens")

    @field_validator("batch_window")
    @classmethod
    def _is_window(cls, text: str) -> str:
        daily_window(text)
        return text

    def has(self, name: str) -> bool:
        """Return whether the setting was given, and is not the default because nobody said anything."""
        return name in self.model_fields_set

    @property
    def redis_urls(self) -> list[str]:
        """Return the URLs of the API's Redis. The first, the home, has all keys that belong to no model."""
        return [self.redis_url, *self.shard_urls.split()]

    def queue_deadline(self, priority: str) -> float:
        """Return the class's queue deadline in seconds."""
        return float(getattr(self, self._named("queue_deadline_s", priority)))

    def run_deadline(self, priority: str) -> float:
        """Return the class's run deadline in seconds."""
        return float(getattr(self, self._named("run_deadline_s", priority)))

    @staticmethod
    def _named(field: str, priority: str) -> str:
        return field if priority == "standard" else f"{priority}_{field}"


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` that are not None win over it. Raises SettingsError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "PENSTOCK_" + str(first["loc"][0]).upper()
        raise SettingsError(f"{name}: {first['msg']} (got {first['input']!r})") from error


def unknown_variables(names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each environment variable that looks like a setting and is none, with the nearest name."""
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(names):
        setting = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            meant = f"; did you mean {PREFIX}{near[0]}?" if near else ", whose settings are listed in docs/settings.md"
            yield f"{name} is not a setting of Penstock{meant}"
