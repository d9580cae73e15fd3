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
        prefilled = sum(row.count for row in batch.rows if not row.decoding)
        self.step(len(batch.rows), tokens=tokens, preempted=len(batch.preempted), prefilled=prefilled)

    def step(self, sequences: int, *, tokens: int, preempted: int, prefilled: int) -> None:
        """Count a step by what it did: sequences in it, tokens sampled, sequences preempted, prompt tokens computed."""
        self._sequences.observe(sequences)
        self._preempted.inc(preempted)
        self._tokens.inc(tokens)
        self.prefill.inc(prefilled)
