"""The request of a client, as the API and the workers exchange it. Plain frozen data: no HTTP, no Redis, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

JOB_ID = r"[A-Za-z0-9_-]{1,128}"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
MEDIA_TOKENS = 1000  # what an image or another part beside a text is taken to cost
LENGTHS = {"low": "Keep your answers short.", "high": "Answer at length and in detail."}  # what a model is told of them
SPLIT_SHARE = 16  # tokenising a prompt costs 1/16 of computing it


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
        """Return the class's share of the tokens while all classes wait: none starves, and the first hardly waits."""
        return {Priority.INTERACTIVE: 16, Priority.STANDARD: 4, Priority.BATCH: 1}[self]


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The form an answer must have. `param` is the request's parameter that asks for it."""

    kind: GrammarKind
    text: str
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling parameters. None means the model's own default. `logprobs` None asks for none, 0 for those of the
    chosen tokens, and n for those of the n likeliest tokens as well.

    `seed` is always set (drawn at admission when the client sends none), so that a resumed job continues identically.
    `seeded` is false if it was drawn: an engine that draws faster without a seed may then do so. `clamped` lowers
    `max_tokens` to what fits beside the prompt; without it such a job is refused.
    """

    seed: int
    seeded: bool = True
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int | None = None
    clamped: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request.

    `request` is the input that the worker tokenises. A chat has its messages and, if the client gave them, its tools,
    which of them to call (`tool_choice`: auto, required or a tool's name), whether several at once (`parallel`),
    whether arguments have listed properties only (`closed`), Lark grammars of tools whose argument is a text
    (`tool_grammars`), how much to reason (`effort`), whether to reason (`reasons`: the parameter that says so, and what
    it says), how long an answer shall be (`verbosity`), whether the answer continues the last message (`continues`)
    or is not begun by the template (`unbegun`), further variables of the chat template (`template`),
    Anthropic's `thinking` if it came by the Messages API, whether its oldest messages may be dropped until the rest
    fits the context (`drop_oldest`), and fields for a server behind the model that Penstock does not know itself
    (`extra`).
    A completion has its prompts (texts or token ids), whether to echo them, and with which log probabilities. An
    embedding has its inputs, dimensions and truncation. A tokenization has the `prompt` or `messages` to split
    (`special` adds the special tokens, `texts` each token's text), or the `tokens` to turn into text.

    It waits in no queue before `not_before_ms`. By `due_ms` its answer is wanted: among a tenant's jobs of one class
    the earliest comes first, and a later answer is cut off. Both are Unix times, 0 for none.

    `queue_deadline_ms` bounds each wait in the queue, `run_deadline_ms` the time from the first claim to the end.
    `tenant` owns the job, and `weight` is the tenant's share beside others. `grace_ms` is how long the job goes on
    after its last reader has left; None is for ever. `keep_s` is its lifetime after its end, if longer than usual.
    `notify` sends its end to webhooks. `cache_salt` names the tenant: prompts share blocks of the KV cache only with
    prompts of the same salt.
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
    not_before_ms: int = 0
    due_ms: int = 0

    @property
    def sequences(self) -> int:
        """Return how many sequences the job occupies in an engine."""
        return self.sampling.n * len(self.request.get("prompts", [None]))

    def run_ms(self, now_ms: float) -> float:
        """Return for how many milliseconds the job may run after its first claim, which is now; 0 for no limit."""
        if not self.due_ms:
            return self.run_deadline_ms
        return min(self.run_deadline_ms or self.due_ms, max(self.due_ms - now_ms, 1))

    @property
    def prompt_tokens_estimate(self) -> int:
        """Estimate the prompt's tokens before it is tokenised: four characters a token, as in English text."""
        request = self.request
        texts = request.get("prompts") or request.get("inputs")
        if texts is None:
            texts = [*map(_without_media, request.get("messages") or ()), str(request.get("tools", ""))]
            texts += [request[name] for name in ("prompt", "tokens") if request.get(name)]
        tokens = sum(len(text) // 4 + 1 if isinstance(text, str) else len(text) for text in texts)
        tokens += MEDIA_TOKENS * sum(map(_media_parts, request.get("messages") or ()))
        return tokens // SPLIT_SHARE + 1 if self.kind is Kind.TOKENS else tokens

    @property
    def output_tokens_max(self) -> int | None:
        """Return the most tokens that all its sequences may have; None when it sets no limit."""
        if self.kind not in (Kind.CHAT, Kind.COMPLETION):
            return 0
        return None if self.sampling.max_tokens is None else self.sampling.max_tokens * self.sequences


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a chat's message, whose content may be parts of several types."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _without_media(message: Mapping[str, Any]) -> str:
    return str({**message, "content": text_of(message)}) if isinstance(message.get("content"), list) else str(message)


def _media_parts(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return sum(part.get("type") != "text" for part in content) if isinstance(content, list) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model as its worker describes it. `engine` is batched, stepwise, embedding, llamacpp, vllm, scripted or custom.
    `parent` is the model that an adapter adapts. `capabilities` lists the requests it serves, `slots` is how many jobs
    a worker runs at a time, and no prompt of more than `prompt_chars_max` characters can fit, however it is tokenised;
    0 if unknown, like `context_length`. `resume` says what becomes of an answer whose worker dies: it goes on with the
    same tokens (`exact`), goes on perhaps otherwise (`prefill`), or fails unless it had not begun (`restart`). `dtype`
    is the number format of its weights, like float32; empty if unknown. `temperature` and `top_p` are those of a
    request that gives none. A model that was never loaded has empty `capabilities` and `resume`: nobody knows them."""

    name: str
    engine: str
    context_length: int
    created_s: int
    parent: str = ""
    capabilities: tuple[str, ...] = ()
    slots: int = 1
    prompt_chars_max: int = 0
    dtype: str = ""
    resume: str = "exact"
    temperature: float = 1.0
    top_p: float = 1.0
    workers: int = 0
    waiting: int = 0
    paused: bool = False
