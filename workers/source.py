"""The protocol of sources. A source answers in text, by whatever it is: rules, a library, a server far away. It knows
nothing of queues, jobs' logs or HTTP, and its model has no tokens that Penstock sees.

A class of somebody else's imports all of this from `penstock.engines`.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from shared.domain.errors import EngineError
from shared.domain.events import CallPart, FinishReason, Logprobs, Usage
from shared.domain.job import Sampling


class Busy(EngineError):
    """The source takes no request now. The job goes back to the queue at no cost of an attempt, and this worker claims
    nothing for that model for `retry_after_s` seconds."""

    def __init__(self, message: str = "the source is busy", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AnswerLost(EngineError):
    """The answer broke off and cannot go on as the source's `resume` promises; its job fails as `upstream_lost`."""


class Resume(StrEnum):
    """The fate of an answer whose worker died after its first words.

    EXACT: the source goes on after `TextRequest.said`, as if nothing had happened. REPEAT: the source gives the same
    answer again, and what was said before is skipped; the job fails if it differs. PREFILL: the source goes on after
    `said`, perhaps otherwise than it would have. Under a grammar or within a tool call the job fails instead. RESTART:
    the job fails, since two answers are never joined; it begins again only where nothing was said yet.
    """

    EXACT = "exact"
    REPEAT = "repeat"
    PREFILL = "prefill"
    RESTART = "restart"

    @property
    def promise(self) -> str:
        """The class as clients are told: exact, prefill or restart. A repeated answer is the exact one, or an error."""
        return str(Resume.EXACT if self is Resume.REPEAT else self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The part of an answer that clients have already. Each of `calls` is a tool call as far as it was said. `pieces`
    is in how many pieces it came, as far as that is known."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    pieces: int = field(default=0, compare=False)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """One answer that is asked for. `job_id` is the same in every attempt, and `choice` counts the answers of a job
    from 0. `sampling` holds the sampling parameters, None for those that the client left open. `cache_salt` names the
    tenant without revealing it: nothing may be shared between two salts. `left_s` is what remains until the job's
    deadline, None if it has none; the job is ended then without the source's help. `extra` holds further parameters of
    the request by name. `quota` names the quota that the job was taken from, if its worker has any."""

    job_id: str
    model: str
    choice: int
    sampling: Sampling
    said: Said = Said()
    cache_salt: str = ""
    user: str | None = None
    left_s: float | None = None
    quota: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(TextRequest):
    """A chat. `messages` and `tools` are as OpenAI defines them. `tool_choice` is auto, required or a tool's name, and
    `template` holds the variables of `chat_template_kwargs`. `thinking` is that of Anthropic's Messages API, of a
    request that came by it."""

    messages: Seq[Mapping[str, Any]]
    tools: Seq[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    thinking: Mapping[str, Any] | None = None

    @property
    def question(self) -> str:
        """The text of the last message."""
        return text_of(self.messages[-1])


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may have parts of other types."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(TextRequest):
    """A text to be continued, or its token ids for a source whose abilities name `token_ids`."""

    prompt: str | list[int]


@dataclass(frozen=True, slots=True)
class Text:
    """The next part of the answer. `tokens` is how many tokens it has, None if the source does not know; `logprobs` has
    an entry for each token if the request asks for them."""

    text: str
    tokens: int | None = None
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next part of the reasoning before the answer."""

    text: str
    tokens: int | None = None


# A string is a Text. A `CallPart` is the next part of a tool call. A `FinishReason` says why the answer ends here, and
# `Usage` counts its tokens; without them an answer ends with `stop` where the iterator ends, and its tokens are counted
# by `ChatSource.count` or estimated.
Piece = str | Text | Reasoning | CallPart | FinishReason | Usage
Pieces = AsyncIterator[Piece] | Iterator[Piece]

# What a request may ask for that only some sources can do. A request for any other is refused by the parameter's name.
ABILITIES = (
    "tools",
    "reasoning",
    "structured_outputs",
    "images",
    "audio",
    "video",
    "files",
    "extra_parameters",
    "logprobs",
    "logit_bias",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "bad_words",
    "allowed_token_ids",
    "token_ids",
)


class Options(BaseModel):
    """The options of a source, which `--engine-option NAME=VALUE` sets. An unknown one is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatSource:
    """A model of one's own. A subclass defines the methods below that it can serve, at least one of `chat`, `complete`,
    `embed` and `rerank`; a request for another is refused.

    `chat` and `complete` are asynchronous generators, or plain generators, which run in a thread of their own for each
    answer. All others run in an event loop of the source's own: one that blocks there delays the source's other
    answers, but no heartbeat. A generator is closed when its job is cancelled, has all its tokens or meets a stop
    string. At most `sequences_max` answers are computed at a time.

    Errors: InvalidRequest refuses the request, with the parameter at fault. Busy puts the job back. EngineBroken says
    that only a new process helps. Any other exception fails the job, with its traceback for the operator.
    """

    Options: ClassVar[type[BaseModel]] = Options
    resume: Resume | str = Resume.RESTART
    abilities: frozenset[str] = frozenset()  # of ABILITIES
    keeps_budget: bool = False  # the source itself ends an answer at max_tokens
    counts_whole: bool = False  # the usage that it gives includes what was said before it went on
    context_length: int = 0  # tokens; 0 if unknown

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def serves(self) -> frozenset[str]:
        """The names of the methods that can be asked of it: by default, those that its class defines."""
        verbs = ("chat", "complete", "embed", "rerank")
        return frozenset(verb for verb in verbs if getattr(type(self), verb) is not getattr(ChatSource, verb))

    async def open(self) -> None:
        """Connect, or load what is needed, before the first request. An error ends the worker's start."""

    def chat(self, request: ChatRequest) -> Pieces:
        """Answer a chat, after what `request.said` holds already."""
        raise NotImplementedError

    def complete(self, request: CompletionRequest) -> Pieces:
        """Continue a text, after what `request.said` holds already."""
        raise NotImplementedError

    async def embed(self, texts: Seq[str | list[int]], *, dimensions: int | None) -> Seq[Seq[float]]:
        """Return a vector for each text, of `dimensions` numbers if given. They need no unit length. A text may be
        token ids if `abilities` names them."""
        raise NotImplementedError

    async def rerank(self, query: str, documents: Seq[str]) -> Seq[float]:
        """Return a score for each document, the higher the better."""
        raise NotImplementedError

    def count(self, text: str) -> int:
        """Count the tokens of a text. It must be fast, and may be called from any thread. By default a token has four
        characters, as in English text."""
        return len(text) // 4 + 1 if text else 0

    def cost(self, usage: Usage) -> int:
        """Return what so many tokens cost, in millionths of the prices' currency, where no `Usage` of the source tells
        it by its `cost_micros`."""
        return 0

    async def watch(self) -> None:
        """Run beside the answers, from when the worker serves until it stops: to notice that what `open` took is lost.
        EngineBroken, or any other error, ends the worker, so that a new process begins anew."""

    async def close(self) -> None:
        """Let go of what `open` took. No method is called after it."""
