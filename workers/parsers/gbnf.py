"""Grammars in GBNF, which llama.cpp and xgrammar read, written as Lark."""

import re
from dataclasses import replace

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar, GrammarKind
from workers.process.time_limit import TimeLimitExceeded, time_limit

TRANSLATE_S_MAX = 2.0  # its cost is quadratic in the number of rules
RULE = re.compile(r"(?m)^[ \t]*[\w-]+\s*::=")


def in_lark(grammar: Grammar) -> Grammar:
    """Return the grammar, translated if it is GBNF. Raises InvalidRequest for one that cannot be."""
    if grammar.kind is not GrammarKind.LARK or not RULE.search(grammar.text):
        return grammar
    try:
        with time_limit(TRANSLATE_S_MAX):
            return replace(grammar, text=gbnf_to_lark(grammar.text))
    except (GbnfToLarkError, ValueError, IndexError, KeyError, RecursionError) as error:
        raise InvalidRequest(f"'{grammar.param}' is no GBNF that can be used: {error}", param=grammar.param) from error
    except TimeLimitExceeded as error:
        message = f"'{grammar.param}' takes more than {TRANSLATE_S_MAX:g} s to translate from GBNF to Lark."
        raise InvalidRequest(message, param=grammar.param) from error
