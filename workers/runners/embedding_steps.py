"""Embedding steps compute the vectors of waiting passages, a batch at a time."""

import logging

from workers.protocols import Embedder, EngineBroken
from workers.runners.engine_thread import StepClock, engine_failed
from workers.runners.outbox import Update
from workers.runners.step_metrics import StepMetrics
from workers.runs.embedding import Embedding, Passage, Passages

log = logging.getLogger(__name__)


class EmbeddingSteps:
    """A failed batch is computed again, passage by passage, and only a job that fails alone is failed."""

    def __init__(self, embedder: Embedder | None, *, tokens_max: int, clock: StepClock, metrics: StepMetrics) -> None:
        """`embedder` is None for a model that makes no vectors; no run may be added then."""
        self._embedder = embedder
        self._passages = Passages(tokens_max=tokens_max)
        self._clock = clock
        self._metrics = metrics

    def __bool__(self) -> bool:
        """True while passages wait."""
        return bool(self._passages)

    def add(self, run: Embedding) -> None:
        self._passages.add(run)

    def drop(self, run: Embedding) -> None:
        self._passages.drop(run)

    def step(self) -> list[Update]:
        """Compute one batch of passages. Raises EngineBroken."""
        batch = self._passages.next_batch()
        try:
            return self._compute(batch)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("embedding failed", extra={"passages": len(batch)})
            self._metrics.faults.inc()
            return self._each_alone(batch) if len(batch) > 1 else [self._fail(batch[0][0], error)]

    def _each_alone(self, batch: list[Passage]) -> list[Update]:
        updates: list[Update] = []
        failed: set[Embedding] = set()
        for passage in batch:
            run = passage[0]
            try:
                updates += self._compute([passage]) if run not in failed else []
            except EngineBroken:
                raise
            except Exception as error:
                failed.add(run)
                updates.append(self._fail(run, error))
        return updates

    def _compute(self, batch: list[Passage]) -> list[Update]:
        assert self._embedder
        passages = [run.passages[index] for run, index in batch]
        with self._clock.step():
            vectors = self._embedder.embed(passages)
        self._metrics.prefill.inc(sum(map(len, passages)))
        return [Update(run, run.advance(index, vector)) for (run, index), vector in zip(batch, vectors, strict=True)]

    def _fail(self, run: Embedding, error: Exception) -> Update:
        self.drop(run)
        return Update(run, [run.finish(engine_failed(error))])
