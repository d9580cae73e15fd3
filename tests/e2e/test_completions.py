"""Text completions as the openai client and evaluation harnesses see them."""

from typing import Any

import httpx
import pytest

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack

GREEDY = {"model": BUILTIN, "temperature": 0, "max_tokens": 12}


def complete(stack: Stack, prompt: Any, **options: Any) -> Any:
    asked: Any = GREEDY | {"prompt": prompt} | options
    return stack.client().completions.create(**asked)


def post(stack: Stack, **body: Any) -> httpx.Response:
    return httpx.post(f"{stack.base}/v1/completions", json=GREEDY | {"prompt": "a"} | body, timeout=60)


def test_choices_run_over_prompts_and_their_texts_are_those_of_each_alone(builtin: Stack) -> None:
    prompts = ["Once upon a time", "The capital of France", "2 + 2"]
    answer = complete(builtin, prompts, n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    alone = [complete(builtin, prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens <= 6 * 12


def test_a_stream_says_what_the_whole_says(builtin: Stack) -> None:
    options: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 8}
    whole = complete(builtin, ["Hello!", "2 + 2"], **options)
    texts, tokens = ["", ""], [[], []]  # type: ignore[var-annotated]
    usage = None
    for chunk in complete(builtin, ["Hello!", "2 + 2"], stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens

    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert usage == whole.usage


def test_echo_scores_the_prompt(builtin: Stack) -> None:
    """lm-evaluation-harness asks for log-likelihoods with token ids, echo, and one more token, which it drops."""
    [choice] = complete(builtin, "Once upon a time", echo=True, logprobs=1, max_tokens=1).choices

    logprobs = choice.logprobs
    assert choice.text.startswith("Once upon a time")
    assert "".join(logprobs.tokens).startswith("Once upon a time")
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(logprobs.tokens[at] in logprobs.top_logprobs[at] for at in range(1, len(logprobs.tokens)))
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(len(logprobs.tokens))]
    [alone] = complete(builtin, "Once upon a time", echo=True, logprobs=1, max_tokens=0).choices
    assert alone.text == "Once upon a time"
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs[1:-1], abs=1e-3)


def test_the_tokens_of_an_echo_stand_at_their_offsets_in_the_text_special_ones_too(builtin: Stack) -> None:
    """The prompt begins with a special token and holds characters of several tokens."""
    split = httpx.post(f"{builtin.base}/v1/tokenize", json={"model": BUILTIN, "prompt": "<|im_start|>Oh 你好🦊 <s>b"})
    ids = split.json()["tokens"]
    [by_ids] = complete(builtin, ids, echo=True, logprobs=0, max_tokens=3).choices
    [by_text] = complete(builtin, "<|im_start|>Oh 你好🦊 <s>b", echo=True, logprobs=0, max_tokens=3).choices

    assert by_ids.text.startswith("<|im_start|>Oh 你好🦊 <s>b")
    assert (by_ids.text, by_ids.logprobs) == (by_text.text, by_text.logprobs)
    logprobs = by_ids.logprobs
    assert len(logprobs.tokens) >= len(ids) + 1
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:") and offset < len(by_ids.text):
            assert by_ids.text[offset:].startswith(token)


def test_the_best_of_many_has_the_likeliest_tokens(builtin: Stack) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 6, "logprobs": 0, "ignore_eos": True}
    extra = {"extra_body": {"ignore_eos": options.pop("ignore_eos")}}
    every = complete(builtin, "A day", n=8, **options, **extra).choices
    best = complete(builtin, "A day", n=2, best_of=8, **options, **extra)

    ranked = sorted(every, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == 48
    unseen = complete(builtin, "A day", n=1, best_of=8, **{**options, "logprobs": None}, **extra).choices[0]
    assert (unseen.text, unseen.logprobs) == (ranked[0].text, None)


def test_a_form_is_kept(builtin: Stack) -> None:
    [choice] = complete(builtin, "Yes or no?", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices

    assert choice.text in ("yes", "no")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 3}, "prompt"),
        ({"prompt": [1_000_000]}, "prompt"),
        ({"prompt": "word " * 5000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 100}, "best_of"),
        ({"n": 17}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"messages": []}, "messages"),
    ],
)
def test_bad_input_is_refused_by_name(builtin: Stack, body: dict[str, Any], param: str) -> None:
    answer = post(builtin, **body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
