"""Grammars in GBNF become Lark, and whatever comes is told from Lark soon."""

import time

import pytest

from shared.domain.job import Grammar, GrammarKind
from workers.parsers.gbnf import in_lark
from workers.parsers.lark_grammar import as_lark


def lark(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.LARK, text=text, param="p")


def test_gbnf_is_translated_and_lark_is_left_as_it_is() -> None:
    assert "start: " in in_lark(lark('  root ::= "yes" | "no"')).text
    assert in_lark(lark('start: "a::=b"')) == lark('start: "a::=b"')


@pytest.mark.parametrize("before", ["\n", " ", "a\n", "a"])
def test_a_long_grammar_is_told_from_gbnf_soon(before: str) -> None:
    grammar = lark(before * 50_000 + '\nstart: "a"')
    began_s = time.thread_time()

    assert in_lark(grammar) == grammar
    assert as_lark(grammar)

    assert time.thread_time() - began_s < 1
