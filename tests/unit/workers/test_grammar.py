"""Answers match their grammar, whatever the model prefers, and still do after a resume."""

import json
import re
from typing import Any

import jsonschema
import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Delta, Event, Finished
from shared.domain.job import Grammar, GrammarKind
from shared.queue.protocols import Delivery
from shared.settings import load_settings
from tests.factories import make_job
from workers.engines.native.loader import load_engine
from workers.engines.offline import compute_all
from workers.loading.model_spec import parse_specs
from workers.protocols import Engine
from workers.runs.generation import Generation
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.grammar import COMPILED_MAX, GRAMMAR_BYTES_MAX, Grammars

WILD = {"temperature": 1.8, "max_tokens": 1500}  # unconstrained, the model writes nothing of the kind
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested, with an array": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {"id": {"enum": [1, 2, 3]}},
                    "required": ["id"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    },
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": "never"}]},
    "a pattern": {"type": "string", "pattern": "^[0-9]{3}-[a-f]{2}$"},
    "a reference": {
        "$defs": {"leaf": {"type": "integer", "minimum": 5, "maximum": 9}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/leaf"}, "b": {"$ref": "#/$defs/leaf"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


def schema(value: Any) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(value), param="response_format")


def regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text, param="structured_outputs.regex")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(parse_specs(["builtin"])[0], load_settings(deterministic=True))


def run_of(engine: Engine, log: list[Event] | None = None, **sampling: Any) -> Generation:
    job = make_job(prompt="Hello!", **(WILD | sampling))
    return Generation(Delivery(job=job, claim_token="e", attempt=1, log=tuple(log or ())), engine)


def play(engine: Engine, log: list[Event] | None = None, n: int = 1, **sampling: Any) -> list[Event]:
    """Play a job that had `log` when it was claimed; return its whole log."""
    known = list(log or [])
    run = run_of(engine, known, n=n, **sampling)
    events = [*known, *run.opening()]

    def ended(sequence: Sequence, new: Sampled) -> bool:
        events.extend(run.advance(sequence, new))
        return sequence not in run.unfinished

    compute_all(engine, run.unfinished, ended)
    return events


def said(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == choice)


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_is_of_its_schema_whatever_the_model_would_rather_say(engine: Engine, name: str) -> None:
    for seed in range(3):
        events = play(engine, seed=seed, grammar=schema(SCHEMAS[name]))

        jsonschema.validate(json.loads(said(events)), SCHEMAS[name])
        assert isinstance(events[-1], Finished)
        assert isinstance(events[-1].outcome, Completed)
        assert isinstance(events[-2], Delta)
        assert events[-2].finish_reason == "stop"


def test_each_choice_has_a_grammar_of_its_own(engine: Engine) -> None:
    events = play(engine, n=4, seed=1, grammar=regex("[ab]{3,12}c"))

    answers = [said(events, choice) for choice in range(4)]
    assert all(re.fullmatch("[ab]{3,12}c", answer) for answer in answers)
    assert len(set(answers)) > 1


def test_a_lark_grammar(engine: Engine) -> None:
    grammar = Grammar(kind=GrammarKind.LARK, text='start: "yes" | "no" | "东京"', param="p")

    assert {said(play(engine, seed=seed, grammar=grammar)) for seed in range(30)} == {"yes", "no", "东京"}


@pytest.mark.parametrize("cut", [1, 2, 7, 15])
def test_a_resumed_answer_goes_on_in_its_grammar(engine: Engine, cut: int) -> None:
    grammar = schema(SCHEMAS["nested, with an array"])
    undisturbed = play(engine, seed=4, grammar=grammar)

    resumed = play(engine, undisturbed[:cut], seed=4, grammar=grammar)

    assert said(resumed) == said(undisturbed)


def test_neighbours_in_the_batch_are_not_bound(engine: Engine) -> None:
    free = play(engine, seed=3, temperature=0.0)

    bound = play(engine, seed=3, temperature=0.0, grammar=regex("[0-9]{4}"))

    assert said(free).startswith("Hello")
    assert re.fullmatch("[0-9]{4}", said(bound))


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"type": "nonsense"}),
        schema({"$ref": "#"}),
        Grammar(kind=GrammarKind.JSON_SCHEMA, text="{not json", param="response_format"),
        regex("(unclosed"),
        regex("a" * (GRAMMAR_BYTES_MAX + 1)),
        Grammar(kind=GrammarKind.LARK, text="start: missing_rule", param="structured_outputs.grammar"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_the_clients_error_by_name(engine: Engine, grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.tokenizer.constraint(grammar)

    assert caught.value.param == grammar.param


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (regex("(unclosed"), "unclosed group"),
        (regex("a{2,1}"), "invalid repetition count range, the start must be <= the end"),
        (regex("(?=a)b\nerror: mine"), "look-around, including look-ahead and look-behind, is not supported"),
        (schema({"type": "string", "pattern": "("}), "unclosed group"),
        (schema({"type": "nonsense"}), "Invalid type: nonsense"),
        (Grammar(kind=GrammarKind.LARK, text="start: missing_rule", param="p"), 'unknown name: "missing_rule"'),
    ],
)
def test_the_error_of_a_grammar_ends_with_its_reason(engine: Engine, grammar: Grammar, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.tokenizer.constraint(grammar)

    said = str(caught.value)
    assert said.startswith(f"'{grammar.param}' cannot be used: ")
    assert said.endswith(reason)
    assert "\n" not in said


def test_a_regex_of_huge_counts_costs_no_time(engine: Engine) -> None:
    grammar = regex("(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})")

    assert set(said(play(engine, grammar=grammar, max_tokens=20))) == {"a"}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"grammar": regex("(a?){5000}a{5000}")}, "structured_outputs.regex"),
        ({"grammar": regex(""), "min_tokens": 8}, "min_tokens"),
    ],
    ids=["a grammar that becomes too costly", "a grammar that ends before the fewest tokens"],
)
def test_a_rule_that_cannot_be_kept_fails_its_own_answer_and_no_step(
    engine: Engine, asked: dict[str, Any], param: str
) -> None:
    hostile, beside = run_of(engine, **asked), run_of(engine)
    refused: list[InvalidRequest] = []
    read: list[Event] = []

    def ended(sequence: Sequence, new: Sampled) -> bool:
        if sequence in beside.sequences:
            read.extend(beside.advance(sequence, new))
            return len(read) == 5
        with pytest.raises(InvalidRequest) as caught:
            hostile.advance(sequence, new)
        refused.append(caught.value)
        return True

    compute_all(engine, [*hostile.unfinished, *beside.unfinished], ended)

    assert [error.param for error in refused] == [param]
    assert len(read) == 5


def test_compiled_grammars_are_kept_but_not_without_bound(engine: Engine) -> None:
    tokenizer: Any = engine.tokenizer
    grammars: Grammars = tokenizer._grammars
    first = regex("first")
    kept = grammars._compiled.get(first) or grammars.constraint(first)

    for number in range(COMPILED_MAX + 10):
        grammars.constraint(regex(f"x{number}"))

    assert kept
    assert len(grammars._compiled) == COMPILED_MAX
    assert first not in grammars._compiled
