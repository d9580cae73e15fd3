"""A run that makes vectors, and the order in which waiting passages are computed."""

from collections import deque
from collections.abc import Sequence as Seq

from shared.domain.errors import ContextLengthExceeded, InvalidRequest
from shared.domain.events import Completed, Embedded, Event, Usage
from shared.queue.protocols import Delivery
from workers.protocols import Embedder, Model
from workers.runs.run import JobRun, require_known


class Embedding(JobRun):
    """One vector for each input; those in the log are not computed again. For a cross-encoder, input 0 is the query: it
    gets no vector and is paired with every other input."""

    def __init__(self, delivery: Delivery, model: Model) -> None:
        """Raises InvalidRequest if the model makes no such vectors, or an input does not fit it."""
        embedder, request = model.embedder, delivery.job.request
        if embedder is None or delivery.job.model in model.adapters:
            raise InvalidRequest(f"The model '{delivery.job.model}' makes no embeddings.", param="model")
        if embedder.pair and not request.get("rank"):
            raise InvalidRequest(f"The model '{delivery.job.model}' only ranks, at /v1/rerank.", param="model")
        _require_dimensions(request["dimensions"], embedder.size)
        param = "documents" if request.get("rank") else "input"
        self.passages = _encoded(request["inputs"], request["truncate"], model, embedder, param)
        self._dimensions: int | None = request["dimensions"]
        logged = {event.index for event in delivery.log if isinstance(event, Embedded)}
        self.left = deque(index for index, passage in enumerate(self.passages) if passage and index not in logged)
        self._open = set(self.left)
        super().__init__(delivery, prompt_tokens=sum(map(len, self.passages)))

    @property
    def done(self) -> bool:
        return not self._open

    def completed(self) -> Completed:
        return Completed(usage=Usage(prompt_tokens=self.prompt_tokens, completion_tokens=0))

    def advance(self, index: int, vector: Seq[float]) -> list[Event]:
        """The events of one more vector, which must have unit length."""
        self._open.discard(index)
        return [Embedded(seq=self.number(), index=index, vector=shortened(vector, self._dimensions)), *self.closing()]


Passage = tuple[Embedding, int]


class Passages:
    """The waiting passages of all runs, taken in turn, so that a run of many inputs delays no other."""

    def __init__(self, *, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._runs: deque[Embedding] = deque()

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, run: Embedding) -> None:
        if run.left:
            self._runs.append(run)

    def drop(self, run: Embedding) -> None:
        """Forget a run; an unknown one is no error."""
        if run in self._runs:
            self._runs.remove(run)

    def next_batch(self) -> list[Passage]:
        """Take as many passages as `tokens_max` tokens hold, but at least one; of an isolated job only that one."""
        batch: list[Passage] = []
        if lonely := next((run for run in self._runs if run.delivery.isolated), None):
            self._runs.remove(lonely)
            self._runs.appendleft(lonely)
        tokens_left = self._tokens_max
        while self._runs:
            run = self._runs[0]
            tokens = len(run.passages[run.left[0]])
            if batch and (tokens > tokens_left or lonely):
                break
            tokens_left -= tokens
            batch.append((run, run.left.popleft()))
            self._runs.popleft()
            if run.left:
                self._runs.append(run)
        return batch


def shortened(vector: Seq[float], dimensions: int | None) -> tuple[float, ...]:
    """The first `dimensions` numbers of the vector, scaled to unit length again."""
    kept = tuple(map(float, vector[:dimensions]))
    if dimensions is None or dimensions == len(vector):
        return kept
    length = sum(x * x for x in kept) ** 0.5 or 1.0
    return tuple(x / length for x in kept)


def _require_dimensions(dimensions: int | None, size: int) -> None:
    if dimensions is not None and dimensions > size:
        raise InvalidRequest(f"'dimensions' must be at most {size} for this model.", param="dimensions")


def _encoded(
    inputs: list[str | list[int]], truncate: int | None, model: Model, embedder: Embedder, param: str
) -> list[list[int]]:
    """Token ids of each input. `truncate`: how many tokens to keep, -1 for as many as fit; None for no truncation."""
    longest = embedder.tokens_max
    if truncate is not None and truncate > longest:
        raise InvalidRequest(f"'truncate_prompt_tokens' must be at most {longest}.", param="truncate_prompt_tokens")
    keep = longest if truncate == -1 else truncate
    passages: list[list[int]] = [[]] if embedder.pair else []
    for item in inputs[len(passages) :]:
        if embedder.pair:
            ids = embedder.pair(str(inputs[0]), str(item), keep)
        elif isinstance(item, str):
            ids = model.tokenizer.encode_text(item, keep)
        else:
            ids = require_known(item[:keep], model.limits.vocabulary, param=param)
        if not ids:
            raise InvalidRequest(f"'{param}' must not hold a text without tokens.", param=param)
        if len(ids) > longest:
            raise ContextLengthExceeded(
                f"This model's maximum input length is {longest} tokens, but an input has {len(ids)}. Shorten it, or "
                "send 'truncate_prompt_tokens': -1.",
                param=param,
            )
        passages.append(ids)
    return passages
