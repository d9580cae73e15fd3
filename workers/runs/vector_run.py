"""A run whose vectors, or scores, come from a source."""

import math
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from dataclasses import replace

from shared.domain.errors import EngineError, InvalidRequest
from shared.domain.events import Completed, Embedded, Event, Usage
from shared.queue.protocols import Delivery
from workers.runs.source_run import SourceRun, require_serves
from workers.source import ChatSource

Vector = tuple[int, Seq[float]]  # the input's index


class VectorRun(SourceRun):
    """One vector for each input; those in the log are not asked for again. Where the source can rerank, input 0 is the
    query, which gets no vector, and each other input one score."""

    def __init__(self, delivery: Delivery, source: ChatSource) -> None:
        """Raises InvalidRequest for what the source cannot do."""
        job, self._source = delivery.job, source
        self._ranks = bool(job.request.get("rank")) and "rerank" in source.serves
        if not self._ranks:
            require_serves(source, "embed", job, "ranks nothing" if job.request.get("rank") else "makes no embeddings")
        self._inputs: list[str | list[int]] = job.request["inputs"]
        if job.request["truncate"] is not None:
            param = "truncate_prompt_tokens"
            raise InvalidRequest(f"'{param}' needs a model with a tokenizer here.", param=param)
        if "token_ids" not in source.abilities and any(not isinstance(each, str) for each in self._inputs):
            raise InvalidRequest(f"'input' must be text: the model '{job.model}' takes no token ids.", param="input")
        logged = {event.index for event in delivery.log if isinstance(event, Embedded)}
        self._left = [index for index in range(int(self._ranks), len(self._inputs)) if index not in logged]
        counts = [source.count(each) if isinstance(each, str) else len(each) for each in self._inputs]
        super().__init__(delivery, prompt_tokens=sum(counts))

    @property
    def unfinished(self) -> list[int]:
        return [0] if self._left else []

    def is_over(self, part: int) -> bool:
        return not self._left

    def tokens(self, part: int) -> int:
        return 0

    @property
    def done(self) -> bool:
        return not self._left

    def completed(self) -> Completed:
        usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=0, estimated=True)
        return Completed(usage=replace(usage, cost_micros=self._source.cost(usage)))

    async def ask(self, part: int) -> AsyncIterator[Vector]:
        left = list(self._left)
        inputs = [self._inputs[index] for index in left]
        if self._ranks:
            scores = await self._source.rerank(str(self._inputs[0]), [str(each) for each in inputs])
            vectors: Seq[Seq[float]] = [(score,) for score in scores]
        else:
            vectors = await self._source.embed(inputs, dimensions=self.delivery.job.request["dimensions"])
        if len(vectors) != len(left):
            raise EngineError(f"the source gave {len(vectors)} vectors for {len(left)} inputs")
        for vector in zip(left, vectors, strict=True):
            yield vector

    def advance(self, part: int, piece: Vector) -> list[Event]:
        index, vector = piece
        self._left.remove(index)
        numbers = tuple(vector) if self._ranks else scaled(vector)
        return [Embedded(seq=self.number(), index=index, vector=numbers), *self.closing()]

    def close(self, part: int) -> list[Event]:
        return []


def scaled(vector: Seq[float]) -> tuple[float, ...]:
    """The vector at unit length."""
    length = math.hypot(*vector) or 1.0
    return tuple(x / length for x in vector)
