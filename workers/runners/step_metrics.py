"""The metrics of one model's steps."""

from shared.observability.metrics import WorkerMetrics
from workers.scheduling.scheduler import Batch


class StepMetrics:
    """The worker's metrics, labelled once: looking a label up costs more than counting."""

    def __init__(self, metrics: WorkerMetrics, model: str, *, blocks: int) -> None:
        self.running = metrics.running.labels(model)
        self.waiting = metrics.waiting.labels(model)
        self.blocks = metrics.blocks.labels(model)
        self.durations = metrics.steps.labels(model)
        self.faults = metrics.faults.labels(model)
        self.prefill = metrics.prefill.labels(model)
        self.shared = metrics.shared.labels(model)
        self._sequences = metrics.batch.labels(model)
        self._preempted = metrics.preempted.labels(model)
        self._tokens = metrics.tokens.labels(model)
        metrics.blocks_max.labels(model).set(blocks)

    def computed(self, batch: Batch, tokens: int) -> None:
        """Count a batch and the tokens sampled from it."""
        self._sequences.observe(len(batch.rows))
        self._preempted.inc(len(batch.preempted))
        self._tokens.inc(tokens)
        self.prefill.inc(sum(row.count for row in batch.rows if not row.decoding))
