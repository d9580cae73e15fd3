"""A grammar of a text holds for the text within a JSON string, too."""

import json
import time

import llguidance
import pytest

from shared.domain.errors import InvalidRequest
from workers.parsers.json_lark import within_json
from workers.parsers.tool_grammar import GRAMMARS_MAX, tools_of

BYTES = llguidance.LLTokenizer("byte")
PATCH = """
start: begin line+ end   // a comment
begin: "*** Begin" LF
end: "*** End" LF?
line: "+" /(.*)/ LF -> line
%import common.LF
"""
TERMINALS = r"""
start: PRAGMA NEWLINE SOURCE | SOURCE
PRAGMA: /[ \t]*\/\/ @exec:[^\r\n]*/
NEWLINE: /\r?\n/
SOURCE: /[\s\S]+/
"""
NUMBERS = r"""
start: "\"" INT ("," INT)* "\""i
%import common.INT
"""


def accepts(grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return all(matcher.consume_token(byte) for byte in text.encode()) and bool(matcher.is_accepting())


def quoted(grammar: str) -> str:
    return 'start: "{\\"input\\": \\"" text "\\"}"\ntext: %lark {\n' + within_json(grammar) + "\n}"


@pytest.mark.parametrize(
    ("grammar", "text", "good"),
    [
        (PATCH, '*** Begin\n+a "q" \\ \t é 🎉\n+\n*** End\n', True),
        (PATCH, "*** Begin\n+a\n*** End", True),
        (PATCH, "*** Begin\n*** End", False),
        (PATCH, "*** Begin\na\n*** End", False),
        (TERMINALS, 'const r = "x"\r\ntext(r)', True),
        (TERMINALS, "", False),
        (NUMBERS, '"1,22"', True),
        (NUMBERS, '"1,"', False),
        (r"start: /a|(b\x01?){2,3}|/", "b\x01b", True),
        (r"start: /a|(b\x01?){2,3}|/", "", True),
        (r"start: /a|(b\x01?){2,3}|/", "b\x01", False),
        (r'start: /^(?P<x>[^\d"]+?)$/', "ab\n", True),
        (r'start: /^(?P<x>[^\d"]+?)$/', "a1", False),
        (r"start: /./", "\n", False),
        (r"start: /./s", "\n", True),
        (r"start: /\p{L}+/", "é", True),
    ],
)
def test_a_text_is_accepted_within_json_if_it_is_accepted_by_itself(grammar: str, text: str, good: bool) -> None:
    assert accepts(grammar, text) == good

    assert accepts(quoted(grammar), json.dumps({"input": text}, ensure_ascii=False)) == good


@pytest.mark.parametrize("body", ['"a\\nb"i', r"/a\nb/i", r"/a[\nx]b/i", r"/a[\s\S]b/si"])
def test_what_json_writes_behind_a_backslash_keeps_its_case(body: str) -> None:
    assert accepts(quoted(f"start: {body}"), r'{"input": "A\nB"}')
    assert not accepts(quoted(f"start: {body}"), r'{"input": "A\NB"}')


@pytest.mark.parametrize("grammar", ["start: A & B", "start: <[7]>", "%ignore WS", r"start: /a\b/", "start: /(?=a)a/"])
def test_what_only_makes_sense_outside_of_a_string_is_refused_by_name(grammar: str) -> None:
    with pytest.raises(InvalidRequest, match="must not have") as refused:
        within_json(grammar)

    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "' + '\\"' * (GRAMMARS_MAX // 2),
        "start: /" + "\\/" * (GRAMMARS_MAX // 2),
        "start: /" + "[" * GRAMMARS_MAX + "/",
        "start: /a{" + "1" * GRAMMARS_MAX + "[/",
    ],
    ids=["string", "expression", "classes", "repeats"],
)
def test_what_has_no_end_is_refused_soon(grammar: str) -> None:
    began_s = time.thread_time()

    with pytest.raises(InvalidRequest) as refused:
        within_json(grammar)

    assert refused.value.param == "tools"
    assert time.thread_time() - began_s < 1


def test_the_grammars_of_a_request_are_bounded_all_together() -> None:
    tool = {"type": "function", "function": {"name": "patch"}}
    asked = {"tools": [tool], "tool_choice": "auto", "parallel": False}
    assert tools_of({**asked, "tool_grammars": {"patch": "a" * 30_000}})

    with pytest.raises(InvalidRequest, match="together") as refused:
        tools_of({**asked, "tool_grammars": {"patch": "a" * 30_000, "other": "a" * 30_000}})

    assert refused.value.param == "tools"
