"""vLLM's reports of its steps become the worker's metrics, and vLLM's own metrics a page."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY, Metric, generate_latest
from vllm.v1.metrics.loggers import StatLoggerBase


@dataclass(slots=True)
class Stats:
    """The newest state of vLLM's scheduler. `steps` counts its steps, `preempted` and `prefilled` what they did."""

    waiting: int = 0
    cache_share: float = 0.0
    steps: int = 0
    preempted: int = 0
    prefilled: int = 0

    def logger(self, config: Any, index: int = 0) -> StatLoggerBase:
        """Return the logger that vLLM calls after each step."""
        return _Logger(self)


@dataclass
class _Logger(StatLoggerBase):
    stats: Stats = field(default_factory=Stats)

    def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **named: Any) -> None:
        stats = self.stats
        stats.steps += 1
        if scheduler_stats is not None:
            stats.waiting = scheduler_stats.num_waiting_reqs
            stats.cache_share = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            stats.preempted += iteration_stats.num_preempted_reqs
            stats.prefilled += iteration_stats.num_prompt_tokens

    def log_engine_initialized(self) -> None:
        """vLLM's own loggers tell this."""


class _Vllm:
    """Those of the process's metrics that are vLLM's."""

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in REGISTRY.collect() if metric.name.startswith("vllm"))


def metrics_page() -> bytes:
    """vLLM's own metrics in Prometheus' text format."""
    return generate_latest(_Vllm())
