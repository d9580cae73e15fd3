"""A constraint's own text says exactly what the constraint allows, so that an engine can keep to it by itself."""

import json
import random
from functools import partial

import llguidance
import llguidance.hf
import numpy as np
import pytest
from transformers import AutoTokenizer

from shared.domain.job import Grammar, GrammarKind
from workers.loading.model_spec import BUILTIN
from workers.text.grammar import Grammars, GrammarState, Reasoning, compiler_of, forbid

TOKENIZER = AutoTokenizer.from_pretrained(BUILTIN)
VOCABULARY, EOS = len(TOKENIZER), TOKENIZER.eos_token_id
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x/y", "z"]}}, "required": ["a"]}
ALL = Grammars(partial(compiler_of, TOKENIZER, vocabulary=VOCABULARY, eos_ids=frozenset({EOS})))
NESTED = 'start: "call " args | /[a-z ]+\\// \nargs: %json {"type": "object", "properties": {"c": {"type": "string"}}}'
GRAMMARS = [
    (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
    (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA | {"x-guidance": {"whitespace_flexible": False}})),
    (GrammarKind.REGEX, r"(https?:\/\/|\\/)[a-z]+/(x|y){2,3}"),
    (GrammarKind.REGEX, "two\nlines"),
    (GrammarKind.LARK, NESTED),
]
REASONINGS = [None, Reasoning(20, 21, False), Reasoning(20, 21, True)]


@pytest.mark.parametrize("reasoning", REASONINGS, ids=["plain", "reasons", "begun"])
@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
def test_the_text_of_a_constraint_allows_what_the_constraint_allows(
    kind: GrammarKind, text: str, reasoning: Reasoning | None
) -> None:
    state = ALL.constraint(Grammar(kind=kind, text=text, param="p"), reasoning)
    compiler = llguidance.hf.from_tokenizer(TOKENIZER, n_vocab=VOCABULARY, eos_token=[EOS])
    matcher = llguidance.LLMatcher(compiler, llguidance.LLMatcher.grammar_from_lark(state.lark))
    rng = random.Random(4)

    for step in range(60):
        allowed = _allowed(state)
        more = set(_allowed_by(matcher)) - set(allowed)
        assert set(allowed) <= set(_allowed_by(matcher)), f"after {step} tokens"
        # Where all of the next text is certain, a mask has its usual tokens alone, though others may spell it, too.
        assert all(state.matcher.deep_copy().consume_token(int(token)) for token in more)
        if state.ended:
            break
        token = 21 if state.free and step > 5 else rng.choice([int(each) for each in allowed if each != EOS] or [EOS])
        if token == EOS:
            break
        state.accept(token)
        assert matcher.consume_token(token)


def test_what_vllm_would_take_for_another_dialect_says_which_it_is() -> None:
    grammar = Grammar(kind=GrammarKind.LARK, text='start[capture]: "a"', param="p")

    assert ALL.constraint(grammar).lark.startswith("%ll")


def _allowed(state: GrammarState) -> np.ndarray:
    return np.flatnonzero(~np.asarray(forbid([state], VOCABULARY))[0])


def _allowed_by(matcher: llguidance.LLMatcher) -> np.ndarray:
    bits = llguidance.numpy.allocate_token_bitmask(1, VOCABULARY)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits)
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[0, :VOCABULARY])
