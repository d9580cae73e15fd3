"""Each engine honours each field of a job's sampling parameters, or refuses it by name. A new field fails these tests
until it has an example here and every engine has decided what it does with it."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar, GrammarKind, Job, Sampling
from tests.conftest import ROOT
from tests.factories import make_job
from tests.unit.workers.sources import Given, delivered
from workers.engines.upstream.chat_body import completion_body
from workers.engines.upstream.messages_body import messages_body
from workers.engines.upstream.providers import PROVIDERS
from workers.engines.upstream.token_protocols import TOKEN_PROTOCOLS, Form, TokenRequest
from workers.protocols import Defaults
from workers.runs.generation import sampling_params
from workers.runs.text_run import TextRun
from workers.scheduling.sequence import SamplingParams
from workers.source import ChatRequest, CompletionRequest, Said

SCHEMA = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type":"object","properties":{"a":{}}}', param="response_format")
PLAIN = Sampling(seed=1, seeded=False)
EXAMPLES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 5, "seeded": True},
    "seeded": {"seeded": True},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "logit_bias": {"logit_bias": ((5, 1.0),)},
    "max_tokens": {"max_tokens": 7},
    "clamped": {"max_tokens": 7, "clamped": True},
    "min_tokens": {"min_tokens": 3},
    "ignore_eos": {"ignore_eos": True},
    "include_stop_str_in_output": {"include_stop_str_in_output": True},
    "skip_special_tokens": {"skip_special_tokens": False},
    "bad_words": {"bad_words": ("no",)},
    "allowed_token_ids": {"allowed_token_ids": (5, 6)},
    "stop": {"stop": ("end",)},
    "stop_token_ids": {"stop_token_ids": (5,)},
    "n": {"n": 2},
    "logprobs": {"logprobs": 2},
    "grammar": {"grammar": SCHEMA},
}
NAMES = [field.name for field in fields(Sampling)]
# What a run itself does with the answer, whatever computes it: `tests/unit/workers/test_generation.py` and
# `test_text_run.py` see it.
OF_ANY_RUN = {"n", "stop", "max_tokens", "clamped"}
OF_TEXTS = {"include_stop_str_in_output", "skip_special_tokens"}
OF_A_TOKEN_RUN = OF_ANY_RUN | OF_TEXTS | {"ignore_eos", "stop_token_ids", "grammar"}
# Parameters by which a request asks for a field, where they have another name.
PARAMS = {"grammar": "response_format", "seeded": "seed"}


def chat_of(sampling: Sampling) -> ChatRequest:
    return ChatRequest(
        job_id="j", model="m", choice=0, sampling=sampling, messages=[{"role": "user", "content": "hello"}]
    )


def by_text(provider: str) -> Callable[[Sampling], Any]:
    def told(sampling: Sampling) -> Any:
        asked = CompletionRequest(job_id="j", model="m", choice=0, sampling=sampling, prompt="hello")
        return completion_body(asked, PROVIDERS[provider], "m", Said())

    return told


def by_messages(sampling: Sampling) -> Any:
    return messages_body(chat_of(sampling), PROVIDERS["anthropic"], "m", Said())


def by_tokens(protocol: str) -> Callable[[Sampling], Any]:
    def told(sampling: Sampling) -> Any:
        TOKEN_PROTOCOLS[protocol].require_known(sampling)
        form = Form(lark="start: calls", json_schema="{}", param="response_format") if sampling.grammar else None
        request = TokenRequest(
            ids=[1],
            tokens_max=sampling.max_tokens or 50,
            sampling=engine_params(sampling),
            form=form,
            salt="",
            ignore_eos=sampling.ignore_eos,
        )
        return TOKEN_PROTOCOLS[protocol].fields(request, "m")

    return told


def engine_params(sampling: Sampling) -> Any:
    defaults = Defaults(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
    return sampling_params(sampling, defaults, frozenset(), tuple((len(word),) for word in sampling.bad_words))


def by_class(sampling: Sampling) -> Any:
    """A class of one's own without abilities gets the sampling parameters as they are, but for those that it would have
    to name."""
    job: Job = replace(make_job(), sampling=sampling)
    TextRun(replace(delivered(), job=job), Given())
    return sampling


# By kind: what is told to that which computes, and the fields that its run honours without telling them.
KINDS: dict[str, tuple[Callable[[Sampling], Any], set[str]]] = {
    "native, llamacpp, vllm, scripted": (engine_params, OF_A_TOKEN_RUN),
    "token upstream: completions": (by_tokens("completions"), OF_A_TOKEN_RUN - {"ignore_eos", "grammar"}),
    "token upstream: sglang": (by_tokens("sglang"), OF_A_TOKEN_RUN - {"ignore_eos", "grammar"}),
    "token upstream: generate": (by_tokens("generate"), OF_A_TOKEN_RUN - {"ignore_eos", "grammar"}),
    "token upstream: llamacpp": (by_tokens("llamacpp"), OF_A_TOKEN_RUN - {"ignore_eos", "grammar"}),
    "class": (by_class, set()),
    "text upstream: anthropic": (by_messages, OF_ANY_RUN),
} | {f"text upstream: {name}": (by_text(name), OF_ANY_RUN) for name in PROVIDERS if name != "anthropic"}


def test_each_field_has_an_example() -> None:
    assert list(EXAMPLES) == NAMES


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_is_honoured_or_refused_by_name(kind: str) -> None:
    tell, honoured = KINDS[kind]
    ignored = []

    for name in NAMES:
        given = replace(PLAIN, **EXAMPLES[name])
        try:
            if name not in honoured and tell(given) == tell(PLAIN):
                ignored.append(name)
        except InvalidRequest as error:
            ignored += [] if error.param in (name, PARAMS.get(name)) else [f"{name}, refused as {error.param}"]

    assert ignored == []


def test_vllm_is_told_each_sampling_parameter_of_a_sequence() -> None:
    """The test reads the source, since vLLM itself is not here."""
    source = (ROOT / "workers/engines/vllm/sampling.py").read_text()

    told = set(re.findall(r"\bsampling\.(\w+)", source))

    assert {field.name for field in fields(SamplingParams)} <= told
