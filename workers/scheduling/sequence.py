"""A sequence is one choice of one job, as the engine sees it: known tokens, and how many of them are computed."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from workers.scheduling.engine_limits import BLOCK_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters with every default filled in. Temperature 0 is greedy; top_k 0 is off. `seeded` is false if
    nobody asked for this seed.

    `banned` token ids cannot be sampled for the first `min_tokens` tokens. `bad_words` are token ids of which the last
    cannot follow the others, and no token can be sampled but `allowed_token_ids`, if there are any. `logprobs` asks for
    the log probability of the sampled token and of that many of the likeliest ones; None asks for nothing.
    `prompt_logprobs` asks for the same of the prompt's tokens.
    """

    seed: int
    temperature: float
    top_p: float
    top_k: int
    seeded: bool = True
    min_p: float = 0
    repetition_penalty: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    banned: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def forbids(self) -> str:
        """The parameter by which the request itself may forbid every token; empty for none."""
        names = ("min_tokens", "allowed_token_ids", "bad_words")
        return next((name for name in names if getattr(self, name)), "")


NOTHING = -1  # sampled instead of a token when what the request asks for forbids every one


class Sampled(NamedTuple):
    """A token and, if asked for, its log probability and the likeliest (token, log probability) pairs, best first. They
    are the model's own, before temperature, penalties and limits."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """A constraint says which tokens a sequence may take next. It must be given each token that was taken."""

    @property
    def ended(self) -> bool:
        """True if nothing but the end may follow."""

    @property
    def lark(self) -> str:
        """The whole constraint in llguidance's dialect of Lark, for an engine that keeps to it by itself."""

    @property
    def json_schema(self) -> str | None:
        """The JSON Schema of an answer that keeps to the constraint, for a server that knows no Lark; None where no
        schema says it: regular expressions, tool calls, or reasoning that has begun."""

    def allowed(self, vocabulary: int) -> list[int]:
        """The tokens that may come next, of a vocabulary of so many."""

    def accept(self, token: int) -> None:
        """Advance by a token that was taken. Raises EngineError for one that is not allowed, InvalidRequest if the
        grammar costs too much to continue."""


class Sequence:
    """`computed` counts the leading tokens whose keys and values lie in `blocks`, in order. Prefill and decode are one
    case: the computed tokens catch up with the known ones.

    `ids` holds prompt and output. Sequences share computed blocks only if their `salt` is equal; `digests` name its
    full blocks. `cached_tokens` says how many tokens were shared when it first ran. `adapter` names the LoRA adapter
    that computes it; it is empty for none. `choice_of_prompt` numbers the choices of its prompt, from 0. `scored` has
    the log probabilities of the prompt's tokens by position, if the request asks for them.
    """

    __slots__ = (
        "adapter",
        "blocks",
        "cached_tokens",
        "choice",
        "choice_of_prompt",
        "computed",
        "constraint",
        "digests",
        "ids",
        "job_id",
        "prompt_length",
        "salt",
        "sampling",
        "scored",
    )

    def __init__(
        self,
        *,
        job_id: str,
        choice: int,
        choice_of_prompt: int | None = None,
        prompt: Iterable[int],
        sampling: SamplingParams,
        output: Iterable[int] = (),
        salt: bytes = b"",
        adapter: str = "",
        constraint: Constraint | None = None,
    ) -> None:
        self.job_id = job_id
        self.choice = choice
        self.choice_of_prompt = choice if choice_of_prompt is None else choice_of_prompt
        self.sampling = sampling
        self.adapter = adapter
        self.salt = adapter.encode() + b"\0" + salt if adapter else salt
        self.constraint = constraint
        self.ids = array("q", prompt)
        self.prompt_length = len(self.ids)
        self.ids.extend(output)
        self.computed = 0
        self.cached_tokens: int | None = None
        self.blocks = array("i")
        self.digests: list[bytes] = []
        self.scored: dict[int, Sampled] = {}

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def output_length(self) -> int:
        """The number of output tokens."""
        return len(self.ids) - self.prompt_length

    @property
    def output(self) -> list[int]:
        return self.ids[self.prompt_length :].tolist()

    @property
    def banned_next(self) -> list[int]:
        """The tokens that cannot be sampled next: ends of a short answer, and ends of bad words that have begun."""
        sampling = self.sampling
        banned = list(sampling.banned) if self.output_length < sampling.min_tokens else []
        return banned + [word[-1] for word in sampling.bad_words if self._ends_in(word[:-1])]

    def _ends_in(self, tokens: tuple[int, ...]) -> bool:
        count = len(tokens)
        return count <= self.output_length and tuple(self.ids[self.length - count :]) == tokens

    @property
    def decoding(self) -> bool:
        """True if only the newest token is left to compute."""
        return self.length - self.computed == 1 and self.computed > 0

    def block(self, index: int) -> bytes:
        """The token ids of a full block, as bytes."""
        return self.ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE].tobytes()
