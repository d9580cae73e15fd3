"""Prometheus metrics, with their units in their names."""

import asyncio
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shared.catalog.demand import Demand
from shared.domain.events import Outcome

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WAITS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOOP_WATCH_S = 0.25
FOUND_LOST = ("cancelled", "renewal", "write", "claim")
OUTCOMES = tuple(outcome.__name__.lower() for outcome in get_args(Outcome))
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _redis_errors(registry: CollectorRegistry) -> Counter:
    return Counter("penstock_redis_errors", "calls that Redis did not serve", registry=registry)


def _loop_lag(registry: CollectorRegistry) -> Histogram:
    about = "how late the event loop gets to what is due"
    return Histogram("penstock_loop_lag_seconds", about, buckets=MOMENTS, registry=registry)


async def watch_loop(lag: Histogram) -> None:
    """Measure for ever how late this event loop runs, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LOOP_WATCH_S
        await asyncio.sleep(LOOP_WATCH_S)
        lag.observe(max(loop.time() - due, 0))


class WorkerMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.running = Gauge(
            "penstock_running_sequences", "sequences in the batch or waiting for it", ["model"], registry=registry
        )
        self.steps = Histogram(
            "penstock_step_seconds", "duration of an engine step", ["model"], buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "penstock_batch_sequences", "sequences in a step", ["model"], buckets=BATCH, registry=registry
        )
        self.waiting = Gauge(
            "penstock_waiting_sequences", "sequences here without a place in the batch", ["model"], registry=registry
        )
        self.blocks = Gauge(
            "penstock_cache_blocks_used", "blocks of the key-value cache in use", ["model"], registry=registry
        )
        self.blocks_max = Gauge("penstock_cache_blocks", "blocks of the key-value cache", ["model"], registry=registry)
        self.preempted = Counter(
            "penstock_preempted_sequences", "sequences that gave their blocks back", ["model"], registry=registry
        )
        self.shared = Counter(
            "penstock_cached_prompt_tokens", "prompt tokens found in the cache", ["model"], registry=registry
        )
        self.faults = Counter("penstock_failed_steps", "engine steps that failed", ["model"], registry=registry)
        self.tokens = Counter("penstock_generated_tokens", "tokens sampled", ["model"], registry=registry)
        self.prefill = Counter("penstock_prefill_tokens", "prompt tokens computed", ["model"], registry=registry)
        self.jobs = Counter("penstock_jobs", "jobs ended here, by outcome", ["model", "outcome"], registry=registry)
        self.failed = Counter(
            "penstock_failed_jobs", "jobs that failed here, by reason", ["model", "code"], registry=registry
        )
        self.cost = Counter(
            "penstock_cost",
            "what completed jobs cost by their upstreams' prices, in the prices' currency",
            ["model"],
            registry=registry,
        )
        self.queued = Histogram(
            "penstock_queue_wait_seconds",
            "from a job's arrival to its first claim",
            ["model", "priority"],
            buckets=WAITS,
            registry=registry,
        )
        self.redelivered = Counter(
            "penstock_redelivered_jobs", "jobs that were at another worker before", ["model"], registry=registry
        )
        self.lost = Counter(
            "penstock_lost_deliveries",
            "jobs no longer ours, by how that was found: cancelled, or a lease lost at renewal, write or claim",
            ["model", "found"],
            registry=registry,
        )
        self.fenced = Counter(
            "penstock_fenced_writes",
            "writes that Redis refused: the job was another's by then",
            ["model"],
            registry=registry,
        )
        self.wasted = Counter(
            "penstock_wasted_tokens", "tokens sampled for jobs that were no longer here", ["model"], registry=registry
        )
        self.redis_errors = _redis_errors(registry)
        self.loop_lag = _loop_lag(registry)

    def begin(self, model: str) -> None:
        """Create the model's counters at zero: a counter that appears with its first event hides that event from
        Prometheus's `rate` and `increase`."""
        for counter in (self.redelivered, self.fenced, self.wasted, self.cost):
            counter.labels(model)
        for outcome in OUTCOMES:
            self.jobs.labels(model, outcome)
        for found in FOUND_LOST:
            self.lost.labels(model, found)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class ApiMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("penstock_http_requests", "answered requests", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "penstock_http_request_seconds",
            "from a request's head to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.open_streams = Gauge("penstock_open_streams", "jobs whose events are being relayed", registry=registry)
        self.first_token = Histogram(
            "penstock_time_to_first_token_seconds",
            "from request to first text of a stream",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "penstock_inter_token_latency_seconds",
            "between two texts of a stream",
            ["model"],
            buckets=MOMENTS,
            registry=registry,
        )
        self.relay_lag = Gauge(
            "penstock_relay_lag_seconds",
            "how long the oldest event heard here waits to be passed on",
            registry=registry,
        )
        self.events = Counter("penstock_relayed_events", "events passed to clients", registry=registry)
        self.refills = Counter(
            "penstock_log_reads", "streams checked against their log after a gap or a silence", registry=registry
        )
        self.refused = Counter(
            "penstock_refused_requests", "requests dropped, by reason", ["reason"], registry=registry
        )
        self.redis_errors = _redis_errors(registry)
        self.redis_up = Gauge(
            "penstock_redis_up",
            "1 while this Redis answers and would lose no job; 0 is the home",
            ["redis"],
            registry=registry,
        )
        self.redis_memory = Gauge(
            "penstock_redis_memory_ratio", "how much of its memory this Redis uses", ["redis"], registry=registry
        )
        self.loop_lag = _loop_lag(registry)
        self.queue = QueueMetrics(registry)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class QueueMetrics:
    """Figures of the queue in Redis. Every API process reports the same ones, so take their maximum, not their sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge("penstock_queue_jobs", "jobs that wait", ["model", "priority"], registry=registry)
        self.tokens = Gauge("penstock_queue_tokens", "tokens that wait, of both ends", ["model"], registry=registry)
        self.oldest = Gauge(
            "penstock_queue_oldest_seconds", "how long the oldest has waited", ["model"], registry=registry
        )
        self.running = Gauge("penstock_running_jobs", "jobs that run", ["model"], registry=registry)
        self.workers = Gauge("penstock_workers", "workers alive", ["model"], registry=registry)
        self.wanted = Gauge("penstock_workers_wanted", "workers that the queue wants", ["model"], registry=registry)

    def show(self, demands: Iterable[Demand], target_wait_s: float) -> None:
        """Report these demands only: a model that is no longer known is better absent than stale."""
        for gauge in (self.jobs, self.tokens, self.oldest, self.running, self.workers, self.wanted):
            gauge.clear()
        for demand in demands:
            for priority, jobs in demand.waiting_jobs.items():
                self.jobs.labels(demand.model, priority.value).set(jobs)
            self.tokens.labels(demand.model).set(demand.waiting_tokens)
            self.oldest.labels(demand.model).set(demand.oldest_s)
            self.running.labels(demand.model).set(demand.running_jobs)
            self.workers.labels(demand.model).set(demand.workers)
            self.wanted.labels(demand.model).set(demand.workers_wanted(target_wait_s))
