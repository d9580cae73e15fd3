"""The encoder is an engine over an embedder: its model makes vectors or scores, and no text."""

from shared.domain.errors import EngineError
from workers.protocols import Defaults, Embedder
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.tokenizer import Tokenizer


class Encoder:
    dtype = ""
    writes = False

    def __init__(self, kind: str, tokenizer: Tokenizer, embedder: Embedder | None, *, limits: EngineLimits) -> None:
        self.kind = kind
        self.limits = limits
        self.defaults = Defaults()
        self.adapters: frozenset[str] = frozenset()
        self.tokenizer = tokenizer
        self.embedder = embedder

    def step(self, batch: Batch) -> list[Sampled]:
        raise EngineError("this model writes no text")

    def free(self, sequence: Sequence) -> None:
        """Do nothing: nothing is kept."""
