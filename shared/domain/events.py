"""What happens to a job, as an append-only log of numbered events. `seq` is the event's place in the job's log."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class Likelihood(NamedTuple):
    """A token as bytes, which need not be whole characters, and the natural logarithm of its probability."""

    token: bytes
    logprob: float


class Logprobs(NamedTuple):
    """Of one token that was chosen, and of the likeliest ones in its place, best first."""

    chosen: Likelihood
    top: tuple[Likelihood, ...]


class CallPart(NamedTuple):
    """More of a tool call of a choice, by its place among the choice's calls: first its id and name, then the text of
    its arguments, which is JSON when all of it has come."""

    call: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts over all choices; the prompt is counted once. `cached_tokens` of it needed no computing;
    `reasoning_tokens` of the completion were spent before the answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The worker has tokenised and accepted the job; always event 0, written once, whatever the attempt."""

    seq: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoed:
    """A prompt, by its index in the request, as it comes back before its choices. `logprobs`: where the job asks for
    them, one for each of its tokens; nothing comes before the first, whose number means nothing."""

    seq: int
    prompt: int
    text: str
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of one choice and the text they release, which may be empty (half a character, a possible stop).

    `choice` counts all choices of all prompts. `logprobs`: where the job asks for them, one for each token; in a chat
    not for the one that ends the answer. `reasoning` and `calls`: what a chat's answer has beside its text.
    """

    seq: int
    choice: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[Logprobs, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vector of one input, by its index in the request; numbers of single precision."""

    seq: int
    index: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """The tokens of a text, with the text of each where that was asked for; or the text of tokens, and no ids."""

    seq: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    usage: Usage


# The codes of a failure that lies in the request itself. The same request would end alike on every worker.
REQUEST_FAULTS = frozenset(
    {"invalid_request", "context_length_exceeded", "model_not_found", "request_too_large", "file_in_use"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """`code` is a slug of `api.http.problems`; `detail` (a traceback) stays with the job and never reaches the client."""

    code: str
    message: str
    param: str | None = None
    detail: str = field(default="", compare=False)

    @property
    def by_request(self) -> bool:
        """Whether the request was wrong, and neither the engine nor a worker."""
        return self.code in REQUEST_FAULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    pass


class Deadline(StrEnum):
    """`QUEUE`: to be taken by a worker. `RUN`: to end, once taken."""

    QUEUE = "queue"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    deadline: Deadline = Deadline.QUEUE


Outcome = Completed | Failed | Cancelled | Expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of every job, exactly once."""

    seq: int
    outcome: Outcome


Event = Started | Echoed | Delta | Embedded | Tokenized | Finished
