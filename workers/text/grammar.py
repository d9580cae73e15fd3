"""Grammars constrain an answer to a given form: llguidance computes which tokens may come next, and compiles as it
goes.

A grammar is compiled, and its first mask computed, in the thread that encodes the job, never between steps. The
parser's own limits bound the cost of a hostile grammar; they count work, not time, so that they are the same
everywhere. A grammar that exceeds them in the middle of an answer fails that answer, not the step.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import numpy.typing as npt

from shared.domain.errors import EngineError, InvalidRequest
from shared.domain.job import Grammar, GrammarKind
from workers.parsers.gbnf import in_lark
from workers.parsers.lark_grammar import WHITESPACE, as_lark

COMPILED_MAX = 64
OUTSIDE = "doesn't satisfy the grammar"  # llguidance's error for a token that its mask forbids
REASON = "error: "  # the line of a regular expression's error that names the reason begins so
GRAMMAR_BYTES_MAX = 200_000


class Reasoning(NamedTuple):
    """The tokens around the reasoning, and whether it has begun before the first token."""

    opening: int
    closing: int
    begun: bool


class GrammarState:
    """A `Constraint`. The accepted tokens are its state, so accepting the logged tokens again restores it. Reasoning is
    free; the answer after it keeps to the grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: Grammar, reasoning: Reasoning | None = None) -> None:
        self.matcher = matcher
        self._grammar = grammar
        self.free = bool(reasoning and reasoning.begun)
        self._reasoning = reasoning
        self._first = True

    @property
    def ended(self) -> bool:
        """True if nothing but the end may follow."""
        return not self.free and bool(self.matcher.is_stopped())

    @property
    def lark(self) -> str:
        return as_lark(self._grammar, reasoning=self._reasoning)

    @property
    def json_schema(self) -> str | None:
        return self._grammar.text if self._grammar.kind is GrammarKind.JSON_SCHEMA and not self.free else None

    @property
    def opening(self) -> int | None:
        """The token that may begin reasoning now, though no grammar has it; None if there is none."""
        return self._reasoning.opening if self._reasoning and self._first else None

    def allowed(self, vocabulary: int) -> list[int]:
        allowed: list[int] = np.flatnonzero(~np.asarray(forbid([self], vocabulary))[0]).tolist()
        return allowed

    def accept(self, token: int) -> None:
        opening, self._first = self.opening, False
        if self.free or token == opening:
            self.free = not (self._reasoning and token == self._reasoning.closing)
            return
        if self.matcher.is_error() or not self.matcher.consume_token(token):
            raise self._failure()

    def _failure(self) -> EngineError | InvalidRequest:
        said = _first_error(self.matcher)
        if OUTSIDE in said:
            return EngineError(f"the answer left its grammar: {said}")
        return InvalidRequest(f"'{self._grammar.param}' cannot be followed: {said}", param=self._grammar.param)


class Compiled(NamedTuple):
    """A compiled grammar, which is in Lark where it came in GBNF."""

    matcher: llguidance.LLMatcher
    grammar: Grammar


class Grammars:
    def __init__(self, make_compiler: Callable[[], Any]) -> None:
        """`make_compiler` makes the vocabulary as llguidance sees it, when the first grammar comes: it takes a second.
        It raises ValueError for a vocabulary that cannot be used."""
        self._make_compiler = make_compiler
        self._compiler: Any = None
        self._compiled: OrderedDict[Grammar, Compiled] = OrderedDict()

    def constraint(self, grammar: Grammar, reasoning: Reasoning | None = None) -> GrammarState:
        """A constraint for a new answer. Raises InvalidRequest, in the compiler's words, for a grammar that cannot be
        used."""
        compiled = self._compiled.get(grammar) or self._compile(grammar)
        self._compiled[grammar] = compiled
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > COMPILED_MAX:
            self._compiled.popitem(last=False)
        return GrammarState(compiled.matcher.deep_copy(), compiled.grammar, reasoning)

    def _compile(self, grammar: Grammar) -> Compiled:
        if len(grammar.text) > GRAMMAR_BYTES_MAX:
            raise InvalidRequest(
                f"'{grammar.param}' must not be longer than {GRAMMAR_BYTES_MAX} bytes.", param=grammar.param
            )
        grammar = in_lark(grammar)
        if self._compiler is None:
            self._compiler = self._made_compiler(grammar)
        try:
            matcher = llguidance.LLMatcher(self._compiler, _to_llguidance(grammar), log_level=0)
        except ValueError as error:
            raise InvalidRequest(f"'{grammar.param}' cannot be used: {error}", param=grammar.param) from error
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars fail only at their first mask, for example a reference to itself
        if matcher.is_error():
            raise InvalidRequest(f"'{grammar.param}' cannot be used: {_first_error(matcher)}", param=grammar.param)
        return Compiled(matcher, grammar)

    def _made_compiler(self, grammar: Grammar) -> Any:
        try:
            return self._make_compiler()
        except ValueError as error:
            message = f"'{grammar.param}': this model's tokenizer cannot be used with a grammar: {error}"
            raise InvalidRequest(message, param=grammar.param) from error


def compiler_of(tokenizer: Any, *, vocabulary: int, eos_ids: frozenset[int]) -> Any:
    """The vocabulary of a tokenizer of transformers, as llguidance sees it. Raises ValueError."""
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(eos_ids))


def forbid(constraints: Seq[GrammarState], vocabulary: int) -> npt.NDArray[np.bool_]:
    """Bool [constraints, vocabulary]: tokens that may not come next, computed on all cores. If a grammar costs too
    much, nothing is forbidden: accepting the token then raises, for that answer alone."""
    bits = llguidance.numpy.allocate_token_bitmask(len(constraints), vocabulary)
    rows = [(constraint.matcher, row) for row, constraint in enumerate(constraints) if not constraint.free]
    if rows:
        llguidance.numpy.fill_next_token_bitmask_par(_executor(), rows, bits)
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :vocabulary]
    for row, constraint in enumerate(constraints):
        if constraint.free or constraint.matcher.is_error():
            allowed[row] = 1
        elif constraint.opening is not None:
            allowed[row, constraint.opening] = 1
    forbidden: npt.NDArray[np.bool_] = allowed == 0
    return forbidden


@functools.cache
def _executor() -> llguidance.LLExecutor:
    return llguidance.LLExecutor(num_threads=os.cpu_count() or 1)


def _first_error(matcher: llguidance.LLMatcher) -> str:
    """The parser's own words, without the state that it adds. A regular expression's error names the reason last, below
    a drawing of the place."""
    text: str = matcher.get_error()
    first, *more = text.strip().splitlines()
    reason = next((line.removeprefix(REASON) for line in more if line.startswith(REASON)), "")
    return f"{first} {reason}" if first.endswith(":") and reason else first


def _to_llguidance(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            text: str = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, defaults=WHITESPACE)
        case GrammarKind.REGEX:
            text = llguidance.LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.LARK:
            text = llguidance.LLMatcher.grammar_from_lark(grammar.text)
    return text
