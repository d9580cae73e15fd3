"""One choice of one job, as the engine sees it: known tokens, and how many of them are computed."""

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """How this sequence chooses tokens, with every default filled in. Temperature 0 is greedy; top_k 0 is off.

    `banned` token ids cannot be chosen for the first `min_tokens` tokens.
    """

    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0
    repetition_penalty: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    banned: frozenset[int] = frozenset()

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """`computed` counts the leading tokens whose keys and values lie in `blocks`, in order. Prefill and decode are one
    case: the computed tokens catch up with the known ones.

    `salt`: sequences share computed blocks only where their salts are equal; `digests` name its full blocks.
    `cached`: how many tokens were shared when it first ran.
    """

    job_id: str
    choice: int
    prompt: Seq[int]
    choosing: Choosing
    output: list[int] = field(default_factory=list)
    salt: bytes = b""
    computed: int = 0
    cached: int | None = None
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    digests: list[bytes] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.length - self.computed == 1 and self.computed > 0

    def tokens(self, start: int, count: int) -> list[int]:
        """Known token ids from `start` on."""
        end, split = start + count, len(self.prompt)
        return [*self.prompt[start:end], *self.output[max(start - split, 0) : max(end - split, 0)]]
