"""What every engine is. An engine computes steps; it knows nothing of jobs, text, Redis or HTTP."""

from collections.abc import Callable, Container, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

from shared.errors import ContextLengthExceeded, EngineError
from shared.job import Grammar
from workers.limits import Limits
from workers.replies.base import PlainReply, Reply
from workers.scheduler import Batch
from workers.sequence import Constraint, Sampled, Sequence


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """`ids` of the whole prompt; `decode` of an answer's, with the marks that `reply` reads. `reply` makes the reader
    of one answer, given a seed for the ids in it; `constraint` what it must keep to."""

    ids: list[int]
    decode: Callable[[Seq[int]], str]
    reply: Callable[[str], Reply]
    constraint: Callable[[], Constraint | None]


class Tokenizer(Protocol):
    """`abilities`: what the model was taught beside writing: tools, reasoning. `token_chars_max`: no token stands for
    more characters, so that a text of more than n times as many has more than n tokens."""

    ends: frozenset[int]
    abilities: frozenset[str]
    token_chars_max: int

    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        """Raises InvalidRequest, which names the parameter, when the model's template refuses the request, or the model
        cannot do what it asks for; ContextLengthExceeded, soon, for a prompt that must have more than `tokens_max`."""

    def encode_text(self, text: str, tokens_max: int | None = None, *, special: bool = True) -> list[int]:
        """Ids of a text by itself, with the special tokens that belong around it, cut to `tokens_max`."""

    def decode(self, ids: Seq[int]) -> str:
        """Text without special tokens; U+FFFD stands for bytes that are no whole character."""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds inside a text."""

    def constraint(self, grammar: Grammar) -> Constraint:
        """For a new answer; raises InvalidRequest for a grammar that cannot be used here."""


def plain_chat(ids: list[int], tokenizer: Tokenizer, wanted: Grammar | None) -> Chat:
    """One whose answers are nothing but text."""
    return Chat(
        ids=ids,
        decode=tokenizer.decode,
        reply=lambda seed: PlainReply(),
        constraint=lambda: tokenizer.constraint(wanted) if wanted else None,
    )


def require_room(characters: int, tokenizer: Tokenizer, tokens_max: int, *, param: str) -> None:
    """Raises ContextLengthExceeded for a text that is too long however it is split, before that takes its time."""
    if characters > tokens_max * tokenizer.token_chars_max:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {tokens_max} tokens. However, your {param} of {characters} "
            f"characters have more. Please reduce the length of the {param}.",
            param=param,
        )


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
    limits: Limits
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
