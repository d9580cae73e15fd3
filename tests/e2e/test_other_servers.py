"""What clients of vLLM, SGLang, llama.cpp and TGI send is honoured, known to change nothing, or refused by name."""

import json
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack
from tests.e2e.test_chat_completions import ask

YES = 'root ::= "yes" | "oh" ws "yes"\nws ::= [ ]+'
SCHEMA = {"type": "object", "properties": {"a": {"enum": [7, 8]}}, "required": ["a"]}
AS_JSON = '{"type":"object","properties":{"a":{"enum":[7,8]}},"required":["a"]}'
SAID = {"role": "assistant", "content": "Hi there! What <|im_end|> can"}
WILD = {"model": BUILTIN, "temperature": 1.5, "seed": 4, "max_tokens": 60}


def chat(stack: Stack, **body: Any) -> httpx.Response:
    asked = WILD | {"messages": ask("hi")} | body
    return httpx.post(f"{stack.base}/v1/chat/completions", json=asked, timeout=60)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "form",
    [
        {"guided_json": SCHEMA},
        {"guided_json": AS_JSON, "guided_decoding_backend": "outlines"},
        {"json_schema": AS_JSON},
        {"grammar": {"type": "json", "value": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"response_format": {"type": "json", "value": SCHEMA}},
    ],
    ids=str,
)
def test_a_schema_by_any_name_is_kept(builtin: Stack, form: dict[str, Any]) -> None:
    assert json.loads(said(chat(builtin, **form)))["a"] in (7, 8)


@pytest.mark.parametrize(
    "form",
    [
        {"guided_regex": "yes|oh +yes"},
        {"regex": "yes|oh +yes"},
        {"grammar": {"type": "regex", "value": "yes|oh +yes"}},
        {"response_format": {"type": "regex", "value": "yes|oh +yes"}},
        {"guided_choice": ["yes", "oh yes"]},
        {"guided_grammar": YES},
        {"guided_grammar": 'start: "yes" | "oh" " "+ "yes"'},
        {"ebnf": YES},
        {"grammar": YES},
        {"structured_outputs": {"grammar": YES}},
    ],
    ids=str,
)
def test_a_grammar_by_any_name_is_kept(builtin: Stack, form: dict[str, Any]) -> None:
    assert said(chat(builtin, **form)) in ("yes", *(f"oh{' ' * spaces}yes" for spaces in range(1, 60)))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"ebnf": 'root ::= ("a"'}, "ebnf"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar.value"),
        ({"grammar": {"type": "yaml", "value": ""}}, "grammar.type"),
        ({"guided_json": {}, "regex": "a"}, "regex"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_choice"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA, "value": SCHEMA}}, "response_format"),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [50_000]}, "allowed_token_ids"),
        ({"allowed_token_ids": [3], "min_tokens": 2}, "min_tokens"),  # the token that ends an answer
        ({"allowed_token_ids": [300], "logit_bias": {"300": -100}, "guided_regex": "a"}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {"continue_final_message": True, "add_generation_prompt": True, "messages": [SAID]},
            "continue_final_message",
        ),
        ({"echo": True}, "echo"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"mirostat": 2}, "mirostat"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"return_hidden_states": True}, "return_hidden_states"),
        ({"watermark": True}, "watermark"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "disabled"}, "enable_thinking": False}, "enable_thinking"),
        ({"enable_thinking": True}, "enable_thinking"),
        ({"verbosity": "endless"}, "verbosity"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_the_name_that_was_sent(
    builtin: Stack, change: dict[str, Any], param: str
) -> None:
    answer = chat(builtin, **change)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_changes_nothing_is_accepted(builtin: Stack) -> None:
    usual = said(chat(builtin))
    harmless = {
        "echo": False,
        "return_token_ids": False,
        "truncate_prompt_tokens": None,
        "mirostat": 0,
        "typical_p": 1.0,
        "dry_multiplier": 0.0,
        "cache_prompt": True,
        "use_beam_search": False,
        "spaces_between_special_tokens": True,
        "separate_reasoning": True,
        "watermark": False,
        "prediction": {"type": "content", "content": "hello"},
        "verbosity": "medium",
        "thinking": {"type": "disabled"},
        "repeat_penalty": 1,
    }

    assert said(chat(builtin, **harmless)) == usual


def test_a_chat_of_one_text_is_a_message_of_the_user(builtin: Stack) -> None:
    assert chat(builtin, messages="hi").json()["choices"] == chat(builtin).json()["choices"]
    assert chat(builtin, messages="").status_code == 200


def test_the_model_is_told_how_long_its_answer_shall_be(builtin: Stack) -> None:
    def read(messages: Any, **more: Any) -> Any:
        return chat(builtin, messages=messages, **more).json()["usage"]["prompt_tokens"]

    def system(text: str) -> Any:
        return [{"role": "system", "content": text}, *ask("hi")]

    assert read(ask("hi"), verbosity="low") == read(system("Keep your answers short.")) > read(ask("hi"))
    both = system("Be kind.\n\nKeep your answers short.")
    assert read(system("Be kind."), verbosity="low") == read(both)


def test_the_same_penalty_has_two_names(builtin: Stack) -> None:
    assert said(chat(builtin, repeat_penalty=1.8)) == said(chat(builtin, repetition_penalty=1.8)) != said(chat(builtin))


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_each_chunk_counts_the_tokens_so_far(builtin: Stack, path: str) -> None:
    body = {"model": BUILTIN, "max_tokens": 6, "n": 2, "ignore_eos": True, "stream": True}
    body |= {"messages": ask("hi")} if path.startswith("chat") else {"prompt": "hi"}
    options = {"include_usage": True, "continuous_usage_stats": True}

    answer = httpx.post(f"{builtin.base}/v1/{path}", json=body | {"stream_options": options}, timeout=60)

    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    counts = {0: [0], 1: [0]}
    for chunk in chunks[:-1]:
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        counts[chunk["choices"][0]["index"]].append(usage["completion_tokens"])
    assert all(each == sorted(each) and each[-1] == 6 for each in counts.values())
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {chunks[-1]["usage"]["prompt_tokens"]}


GREEDY = {"temperature": 0, "max_tokens": 12}


def test_words_and_tokens_are_kept_out_of_an_answer(builtin: Stack) -> None:
    usual = said(chat(builtin, **GREEDY))
    word = usual.split()[1].strip("!.,?")
    split = {"model": BUILTIN, "prompt": "yes no", "add_special_tokens": False}
    ids = httpx.post(f"{builtin.base}/v1/tokenize", json=split).json()["tokens"]

    assert word in usual
    assert word not in said(chat(builtin, **GREEDY, bad_words=[word]))
    letters = said(chat(builtin, allowed_token_ids=ids, ignore_eos=True))
    assert letters
    assert set(letters) <= set("yes no")


@pytest.mark.parametrize("name", ["include_stop_str_in_output", "no_stop_trim"])
def test_an_answer_may_end_with_what_ended_it(builtin: Stack, name: str) -> None:
    usual = said(chat(builtin, **GREEDY))
    stop = usual.split()[1]

    cut = said(chat(builtin, **GREEDY, stop=stop))
    whole = said(chat(builtin, **GREEDY, stop=stop, **{name: True}))

    assert not cut.endswith(stop)
    assert whole == cut + stop


def test_special_tokens_are_shown_to_who_asks_for_them(builtin: Stack) -> None:
    body = GREEDY | {"max_tokens": 40}

    hidden = said(chat(builtin, **body, ignore_eos=True))
    shown = said(chat(builtin, **body, ignore_eos=True, skip_special_tokens=False))
    ended = said(chat(builtin, **body, skip_special_tokens=False, include_stop_str_in_output=True))

    assert "<|im_end|>" in shown
    assert "<|im_end|>" not in hidden
    assert ended.endswith("<|im_end|>")


def test_an_answer_continues_the_last_message(builtin: Stack) -> None:
    usual = said(chat(builtin, **GREEDY))
    begun = " ".join(usual.split()[:4])
    messages = [*ask("hi"), {"role": "assistant", "content": begun}]

    def read(**more: Any) -> int:
        return int(chat(builtin, **more).json()["usage"]["prompt_tokens"])

    continued = said(chat(builtin, **GREEDY, messages=messages, continue_final_message=True))
    assert begun + continued == usual
    assert said(chat(builtin, messages=[*ask("hi"), SAID], continue_final_message=True, add_generation_prompt=False))
    assert read(add_generation_prompt=False) < read() < read(messages=messages, continue_final_message=True)
