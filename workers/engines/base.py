"""What every engine is. An engine computes steps; it knows nothing of jobs, text, Redis or HTTP."""

from collections.abc import Callable, Container
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from shared.domain.errors import EngineError
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The model's own choice where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class OutOfMemory(EngineError):
    """The device had no room for this step."""


class EngineBroken(EngineError):
    """The device or the library is in a state from which only a new process recovers."""


class Embedder(Protocol):
    """`size`: how many numbers a vector has. `tokens_max`: of one passage. `pair`: how a query and a text, of which it
    keeps so many tokens, become one passage whose vector is one score from 0 to 1; None where each is a passage."""

    size: int
    tokens_max: int

    @property
    def pair(self) -> Callable[[str, str, int | None], list[int]] | None: ...

    def embed(self, passages: Seq[Seq[int]]) -> Seq[Seq[float]]:
        """A vector of unit length for each passage of token ids, the same whatever passages are beside it. Blocks;
        called from the engine's thread. Raises as `Engine.step` does."""


class Engine(Protocol):
    """`kind` is what `/v1/models` calls it: batched, stepwise, embedding or scripted."""

    kind: str
    limits: EngineLimits
    defaults: Defaults

    @property
    def adapters(self) -> Container[str]:
        """Names of models that are this one with a LoRA adapter."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def embedder(self) -> Embedder | None:
        """None for a model that makes no vectors."""

    def step(self, batch: Batch) -> list[Sampled]:
        """Compute the batch; return one token for each sampling row, in order. Blocks; called from one thread.

        Raises OutOfMemory when a smaller batch may succeed, EngineBroken when nothing will. After any other error the
        engine goes on, once the sequences of the batch are freed.
        """

    def free(self, sequence: Sequence) -> None:
        """Forget what was computed for the sequence; one that the engine does not know is no error."""
