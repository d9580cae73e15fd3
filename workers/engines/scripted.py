"""The scripted engine has no model: its answers are known beforehand. It is for tests, demonstrations and load on the
pipeline.

Token i of an answer is a hash of the prompt and i (and of seed and choice, unless the temperature is 0). A prompt may
ask for a fault: `fault:raise@5` raises at token 5, `fault:exit@5` kills the process, `fault:hang@5` never returns,
`fault:oom@5` runs out of memory. In a chat the engine may also do its part while the answer cannot be read:
`fault:read@5` is a parser that raises at token 5, `fault:decode@5` a detokenizer, `fault:grammar@5` a grammar.
"""

import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import Field

from shared.domain.errors import EngineError, InvalidRequest, SettingsError
from shared.domain.events import FinishReason
from shared.domain.job import Grammar
from shared.observability.metrics import WorkerMetrics
from shared.settings import Settings
from workers.loading.loaded import Loaded, infos_of, stepped
from workers.loading.model_spec import ModelSpec
from workers.loading.options import EngineOptions, validated
from workers.parsers.output_parser import ParsedDelta, PlainParser
from workers.process.single_thread import SingleThread
from workers.protocols import Defaults, OutOfMemory
from workers.runners.base import Runner
from workers.runners.engine_loop import EngineLoop
from workers.runners.outbox import Outbox
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Constraint, Sampled, Sequence
from workers.text.tokenizer import Chat, plain_chat

END = 0
VOCABULARY = 50_000
CONTEXT = 1_000_000
FAULTS = ("raise", "exit", "hang", "oom", "read", "decode", "grammar")
FAULT_IDS = 1_000_000  # ids from here on stand for a fault: kind * FAULT_IDS + position
FAULT = re.compile("fault:(" + "|".join(FAULTS) + r")@(\d{1,5})")


class ScriptedTokenizer:
    eos_ids = frozenset({END})
    abilities: frozenset[str] = frozenset()
    token_chars_max = 1_000_000

    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        if request.get("tools"):
            raise InvalidRequest("'tools': the scripted engine calls no tools.", param="tools")
        lines = " ".join(f"{message['role']} {message['content']}" for message in request["messages"])
        return _unreadable(plain_chat(self.encode_text(lines), self, wanted))

    def encode_text(self, text: str, tokens_max: int | None = None, *, special: bool = True) -> list[int]:
        """One token for each word."""
        return [self._token(word) for word in text.split()[:tokens_max]]

    def decode(self, ids: Seq[int], *, special: bool = False) -> str:
        return "".join(f" t{token}" for token in ids if special or token != END)

    def token_bytes(self, token: int) -> bytes:
        return self.decode([token]).encode()

    def constraint(self, grammar: Grammar) -> Constraint:
        raise InvalidRequest(f"'{grammar.param}': the scripted engine supports no grammar.", param=grammar.param)

    def _token(self, word: str) -> int:
        fault = FAULT.fullmatch(word)
        return (FAULTS.index(fault[1]) + 1) * FAULT_IDS + int(fault[2]) if fault else _hash(word) % VOCABULARY


class UnreadableReply(PlainParser):
    """A parser that raises at the token of this number, like one that recurses too deeply."""

    def __init__(self, position: int, seed: str) -> None:
        self._left = position

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        if self._left == 0:
            raise RecursionError("the prompt asked for this fault")
        self._left -= 1
        return super().push(text, reason)


class UnreadableGrammar:
    """A constraint that refuses the token of this number."""

    ended = False
    lark = "start: /.*/s"
    json_schema = None

    def __init__(self, position: int) -> None:
        self._left = position

    def allowed(self, vocabulary: int) -> list[int]:
        return list(range(vocabulary))

    def accept(self, token: int) -> None:
        if self._left == 0:
            raise EngineError("the prompt asked for this fault")
        self._left -= 1


class ScriptedEmbedder:
    """An embedder whose vector is a direction in space by the passage's hash. A fault at token 0 happens here, too."""

    size = 16
    pair = None

    def __init__(self, *, tokens_max: int, step_s: float) -> None:
        self.tokens_max = tokens_max
        self._step_s = step_s

    def embed(self, passages: Seq[Seq[int]]) -> list[list[float]]:
        time.sleep(self._step_s)
        return [self._vector(passage) for passage in passages]

    def _vector(self, passage: Seq[int]) -> list[float]:
        _obey(passage, position=0)
        numbers = [_hash(f"{list(passage)} {i}") / 2**63 - 1 for i in range(self.size)]
        length = math.hypot(*numbers)
        return [number / length for number in numbers]


class ScriptedEngine:
    kind = "scripted"
    dtype = ""
    writes = True

    def __init__(self, *, limits: EngineLimits, step_ms: float, tokens: int) -> None:
        """A step takes `step_ms`. An answer has `tokens` tokens unless max_tokens ends it sooner."""
        self.limits = limits
        self.defaults = Defaults()
        self.adapters: frozenset[str] = frozenset()
        self.tokenizer = ScriptedTokenizer()
        self._step_s = step_ms / 1000
        self.embedder = ScriptedEmbedder(tokens_max=limits.context_length, step_s=self._step_s)
        self._tokens = tokens

    def step(self, batch: Batch) -> list[Sampled]:
        if self._step_s:
            time.sleep(self._step_s)
        return [self._sampled(row.sequence) for row in batch.sampling]

    def free(self, sequence: Sequence) -> None:
        pass

    def _sampled(self, sequence: Sequence) -> Sampled:
        """Sure of itself: its token's probability is 1."""
        token = self._token(sequence, sequence.output_length)
        return Sampled(token, 0.0, ((token, 0.0),) if sequence.sampling.logprobs else ())

    def _token(self, sequence: Sequence, position: int) -> int:
        _obey(sequence.ids[: sequence.prompt_length], position=position)
        if position >= self._tokens:
            return END
        return scripted_token(sequence, position)


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Raises SettingsError for adapters, and for unknown options."""
    options = validated(spec.engine, spec.options, ScriptedOptions)
    if spec.adapters:
        raise SettingsError("ADAPTER: the scripted engine has no weights that could be adapted")
    limits = EngineLimits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=settings.context_length or CONTEXT,
        vocabulary=VOCABULARY,
        prefix_cache=settings.prefix_cache,
    )
    engine = ScriptedEngine(limits=limits, step_ms=settings.scripted_step_ms, tokens=settings.scripted_tokens)
    loaded = stepped(infos_of(spec, engine), engine, thread)
    if not options.sleeps:
        return loaded

    def make_runner(outbox: Outbox, metrics: WorkerMetrics, more_places: Callable[[], None]) -> Runner:
        return SleepingLoop(spec.name, engine, thread, outbox=outbox, metrics=metrics, more_places=more_places)

    return replace(loaded, make_runner=make_runner)


class ScriptedOptions(EngineOptions):
    """`devices` is how many devices a host gives to a worker, which uses none; with `sleeps` it can leave them."""

    devices: int = Field(0, ge=0)
    sleeps: bool = False


class SleepingLoop(EngineLoop):
    """A loop that can sleep, though there is nothing to free."""

    sleeps = True
    _asleep = False

    def sleep(self, level: int) -> Future[None]:
        return self._set(asleep=True)

    def wake(self) -> Future[None]:
        return self._set(asleep=False)

    def _set(self, *, asleep: bool) -> Future[None]:
        done: Future[None] = Future()

        def command() -> None:
            assert not (asleep and self._busy), "it sleeps while it computes"
            self._asleep = asleep
            done.set_result(None)

        self._inbox.put(command)
        return done

    def _count(self) -> None:
        super()._count()
        if self._asleep:
            self.places = 0


def scripted_token(sequence: Sequence, position: int) -> int:
    sampling = sequence.sampling
    drawn = (sampling.seed, sequence.choice_of_prompt) if sampling.temperature else ()
    return _answered(sequence.ids[: sequence.prompt_length].tolist(), drawn, position)


def _answered(prompt: list[int], drawn: tuple[int, ...], position: int) -> int:
    return 1 + _hash(f"{prompt} {drawn} {position}") % (VOCABULARY - 1)


def _obey(prompt: Iterable[int], *, position: int) -> None:
    for fault, at in _faults(prompt):
        if at == position:
            _fail(fault)


def _faults(prompt: Iterable[int]) -> Iterator[tuple[str, int]]:
    """The faults that the prompt asks for, each with its token's number in the answer."""
    return ((FAULTS[token // FAULT_IDS - 1], token % FAULT_IDS) for token in prompt if token >= FAULT_IDS)


def _unreadable(chat: Chat) -> Chat:
    """The chat with the faults that its prompt asks for when its answer is read."""
    for fault, at in _faults(chat.ids):
        match fault:
            case "read":
                chat = replace(chat, make_parser=partial(UnreadableReply, at))
            case "grammar":
                chat = replace(chat, constraint=partial(UnreadableGrammar, at))
            case "decode":
                chat = replace(chat, decode=_undecodable(chat, at))
    return chat


def _undecodable(chat: Chat, position: int) -> Callable[[Seq[int]], str]:
    """A `decode` that raises at the greedy answer's token of this number: a detokenizer knows nothing but ids."""
    bad, decode = _answered(chat.ids, (), position), chat.decode

    def decoded(ids: Seq[int]) -> str:
        if bad in ids:
            raise ValueError("the prompt asked for this fault")
        return decode(ids)

    return decoded


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _fail(fault: str) -> None:
    match fault:
        case "raise":
            raise EngineError("the prompt asked for this fault")
        case "exit":
            os._exit(66)
        case "oom":
            raise OutOfMemory("the prompt asked for this fault")
        case "hang":
            threading.Event().wait()
