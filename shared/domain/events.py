"""The events of a job, which its append-only log numbers. `seq` is the event's place in the job's log."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class Likelihood(NamedTuple):
    """A token as bytes, which may end within a character, and the natural logarithm of its probability."""

    token: bytes
    logprob: float


class Logprobs(NamedTuple):
    """The log probabilities of one chosen token and of the likeliest tokens in its place, best first."""

    chosen: Likelihood
    top: tuple[Likelihood, ...]


class CallPart(NamedTuple):
    """The next part of a choice's tool call number `call`: first its id and name, then the text of its arguments,
    which is JSON once it is complete."""

    call: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts over all choices; the prompt counts once. Its `cached_tokens` came from the prefix cache, and the
    `reasoning_tokens` of the completion precede the answer. They are `estimated` if nobody counted real tokens.
    `cost_micros` is what they cost, in millionths of the prices' currency; 0 without a price."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_micros: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The worker has tokenised and accepted the job. It is always event 0, written once over all attempts. `dtype` is
    the number format that the first attempt computed in; empty if unknown."""

    seq: int
    prompt_tokens: int
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoed:
    """A prompt, by its index in the request, echoed before its choices. `logprobs` has one entry per prompt token if
    the job asks for them; the first token follows nothing, so its number carries no meaning."""

    seq: int
    prompt: int
    text: str
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of one choice and the text they release, which may be empty (half a character, a possible stop).

    `choice` counts all choices of all prompts. `logprobs` has one entry per token if the job asks for them; in a chat
    the token that ends the answer has none. `reasoning` and `calls` are the parts of a chat's answer beside its text.
    `stop` is the stop string that ended the answer; empty if none did, or if a release before 0.3 wrote the event.
    """

    seq: int
    choice: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[Logprobs, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    stop: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vector of one input, by its index in the request, in single precision."""

    seq: int
    index: int
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """The tokens of a text, with the text of each if the request asks for it; or the text of tokens, without ids."""

    seq: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    usage: Usage


# The codes of a failure that the request itself causes. The same request would fail on every worker.
REQUEST_FAULTS = frozenset(
    {
        "invalid_request",
        "content_policy_violation",
        "context_length_exceeded",
        "conversation_locked",
        "model_not_found",
        "request_too_large",
        "file_in_use",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job failed. `code` is a slug of `api.http.problems`; `detail` is a traceback, which no client sees."""

    code: str
    message: str
    param: str | None = None
    detail: str = field(default="", compare=False)

    @property
    def by_request(self) -> bool:
        """True if the request was at fault, rather than the engine or a worker."""
        return self.code in REQUEST_FAULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    pass


class Deadline(StrEnum):
    """The deadline that passed: `QUEUE` for the claim by a worker, `RUN` from the first claim to the end."""

    QUEUE = "queue"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    deadline: Deadline = Deadline.QUEUE


Outcome = Completed | Failed | Cancelled | Expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of every job, exactly once. `ended_ms` is when its worker had it, by the worker's clock; 0 if no
    worker ended the job, or one of a release before 0.3."""

    seq: int
    outcome: Outcome
    ended_ms: int = field(default=0, compare=False, repr=False)


Event = Started | Echoed | Delta | Embedded | Tokenized | Finished
