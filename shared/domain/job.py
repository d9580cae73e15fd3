"""What a client asked for, in the words both sides speak. Plain frozen data: no HTTP, no Redis, no torch."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

JOB_ID = r"[A-Za-z0-9_-]{1,128}"
SPLIT_SHARE = 16  # splitting a text into tokens costs this part of computing them


class Kind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TOKENS = "tokens"


class Priority(StrEnum):
    """Classes of jobs, the most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        return list(Priority).index(self)

    @property
    def weight(self) -> int:
        """Its share of the tokens while all classes wait: none starves, and the first hardly waits."""
        return {Priority.INTERACTIVE: 16, Priority.STANDARD: 4, Priority.BATCH: 1}[self]


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The form an answer must have. `param`: the parameter of the request that asked for it."""

    kind: GrammarKind
    text: str
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens. None means the model's own default; `logprobs` None asks for none, 0 for those of the
    chosen tokens, more for so many of the likeliest beside.

    `seed` is always set (drawn at admission when the client sends none), so that a resumed job can go on alike.
    """

    seed: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request. `request` is what the worker encodes. A chat's holds its messages, the tools that may be
    called, which of them (`tool_choice`: auto, required or a tool's name), whether several at once (`parallel`), how
    much to reason (`effort`) and what else its template gets (`template`), as far as the client gave them. A
    completion's holds its prompts (texts or token ids), whether to echo them, and with which log probabilities. An
    embedding's holds its inputs, dimensions and truncation. A question about tokens holds the `prompt` or `messages` to
    split (`special`: with the tokens that belong around it; `texts`: each token's too), or the `tokens` to write out.

    `queue_deadline_ms`: how long the job may wait, from each time it is queued; `run_deadline_ms`: how long it may take
    from its first claim to its end. `tenant`: who it is for, and `weight`: the tenant's share beside others.
    `grace_ms`: how long it goes on after its last reader has left; None for ever. `keep_s`: how long it is kept after
    its end, if that is longer than usual. `notify`: its end is sent to webhooks. `cache_salt`: prompts share computed
    blocks only with prompts of the same salt, which names the tenant.
    """

    id: str
    model: str
    kind: Kind
    request: dict[str, Any]
    sampling: Sampling
    created_ms: int
    queue_deadline_ms: int
    run_deadline_ms: int
    priority: Priority = Priority.STANDARD
    tenant: str = ""
    weight: float = 1.0
    grace_ms: int | None = 0
    keep_s: int = 0
    notify: bool = False
    user: str | None = None
    cache_salt: str = ""

    @property
    def sequences(self) -> int:
        """How many sequences an engine makes of it."""
        return self.sampling.n * len(self.request.get("prompts", [None]))

    @property
    def prompt_tokens_estimate(self) -> int:
        """Before a tokenizer has seen it: four characters a token, as texts in English have."""
        request = self.request
        texts = request.get("prompts") or request.get("inputs")
        if texts is None:
            texts = [*map(str, request.get("messages") or ()), str(request.get("tools", ""))]
            texts += [request[name] for name in ("prompt", "tokens") if request.get(name)]
        tokens = sum(len(text) // 4 + 1 if isinstance(text, str) else len(text) for text in texts)
        return tokens // SPLIT_SHARE + 1 if self.kind is Kind.TOKENS else tokens

    @property
    def output_tokens_max(self) -> int | None:
        """Of all its sequences; None when it sets no limit."""
        if self.kind not in (Kind.CHAT, Kind.COMPLETION):
            return 0
        return None if self.sampling.max_tokens is None else self.sampling.max_tokens * self.sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a worker says of a model it serves. `engine` is batched, stepwise, embedding or scripted. `parent`: of an
    adapter, the model that it adapts. `capabilities`: what may be asked of it. `slots`: how many jobs a worker runs at
    a time. `prompt_chars_max`: a prompt of more characters cannot fit, however it is split; 0 when nobody knows."""

    name: str
    engine: str
    context_length: int
    created_s: int
    parent: str = ""
    capabilities: tuple[str, ...] = ()
    slots: int = 1
    prompt_chars_max: int = 0
    workers: int = 0
    waiting: int = 0
    paused: bool = False
