"""Metrics (Prometheus) and logs (one JSON object a line). No prompt, no answer and no key ever goes into either."""

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shared.demand import Demand

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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
        self.lost = Counter(
            "penstock_lost_deliveries", "jobs cancelled or taken over while here", ["model"], registry=registry
        )
        self.wasted = Counter(
            "penstock_wasted_tokens", "tokens sampled for jobs that were no longer here", ["model"], registry=registry
        )
        self.redis_errors = Counter("penstock_redis_errors", "calls that Redis did not serve", registry=registry)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class ApiMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("penstock_http_requests", "answered requests", ["route", "status"], registry=registry)
        self.open_streams = Gauge("penstock_open_streams", "jobs whose events are being relayed", registry=registry)
        self.first_token = Histogram(
            "penstock_time_to_first_token_seconds", "from request to first text", buckets=SECONDS, registry=registry
        )
        self.events = Counter("penstock_relayed_events", "events passed to clients", registry=registry)
        self.refills = Counter(
            "penstock_log_reads", "streams checked against their log after a gap or a silence", registry=registry
        )
        self.refused = Counter(
            "penstock_refused_requests", "requests dropped, by reason", ["reason"], registry=registry
        )
        self.queue = QueueMetrics(registry)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class QueueMetrics:
    """What Redis holds, the same from whichever API process it is asked: take the maximum of them, not the sum."""

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
        """These and no others: what is not known any more is better absent than old."""
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


_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A fixed message plus the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy, loud in (("httpx", "WARNING"), ("uvicorn.access", "WARNING"), ("bitsandbytes", "ERROR")):
        logging.getLogger(noisy).setLevel(loud)
