"""The protocols of models and engines. A model is all that a run must know of what computes it. An engine is a model
that computes steps; it knows nothing of jobs, text, Redis or HTTP."""

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
    """The model's own sampling parameters, for what a request leaves open."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class OutOfMemory(EngineError):
    """The device has no memory for this step."""


class EngineBroken(EngineError):
    """The device or the library is in a state from which only a new process recovers."""


class Embedder(Protocol):
    """A vector has `size` numbers, a passage at most `tokens_max` tokens. `pair` joins a query and a text, cut so that
    both have at most that many tokens (None: uncut), to a passage whose vector is one score from 0 to 1. `pair` is None
    for an embedder whose inputs are passages."""

    size: int
    tokens_max: int

    @property
    def pair(self) -> Callable[[str, str, int | None], list[int]] | None: ...

    def embed(self, passages: Seq[Seq[int]]) -> Seq[Seq[float]]:
        """Compute a vector of unit length for each passage of token ids, whatever passages are beside it. Blocks;
        called from the engine's thread. Raises as `Engine.step` does."""


class Model(Protocol):
    """A model that speaks tokens, whoever computes it. `kind` is its engine's name in `/v1/models`: batched, stepwise,
    embedding, llamacpp, vllm or scripted. Nothing is decided by it: `writes` is true if the model generates text,
    `embedder` says whether it makes vectors, and `Tokenizer.abilities` names the rest. `dtype` is the number format of
    its weights, like float32; empty if it has none."""

    kind: str
    dtype: str
    writes: bool
    limits: EngineLimits
    defaults: Defaults

    @property
    def adapters(self) -> Container[str]:
        """The names of models that are this one with a LoRA adapter."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def embedder(self) -> Embedder | None:
        """The embedder; None for a model that makes no vectors."""


class Engine(Model, Protocol):
    """A model that is computed in steps which our scheduler makes."""

    def step(self, batch: Batch) -> list[Sampled]:
        """Compute the batch; return one token for each sampling row, in order. Blocks; called from one thread.

        Raises OutOfMemory if a smaller batch may succeed, EngineBroken if no batch will. After any other error the
        engine can continue once the sequences of the batch are freed.
        """

    def free(self, sequence: Sequence) -> None:
        """Free what was computed for the sequence; an unknown one is no error."""
