"""Loading models of upstreams: what is told of them, and what is not needed for that."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.driver import Driver
from shared.domain.errors import InvalidRequest, SettingsError
from shared.domain.job import Grammar, GrammarKind
from shared.queue.protocols import Delivery
from shared.settings import load_settings
from tests.conftest import ROOT
from tests.factories import make_job
from tests.upstreams import Fault, StandIn, in_thread, openai_chat, token_server
from workers.engines.upstream.providers import MEDIA
from workers.engines.upstream.upstreams import told_lacking
from workers.loading.loaded import Loaded, load
from workers.loading.model_spec import BUILTIN, parse_specs

NOT_NEEDED = ("torch", "transformers", "tokenizers", "llguidance", "jinja2", "numba")


def loaded(**options: Any) -> Loaded:
    """Load a model, and stop what would compute it."""
    (spec,) = parse_specs(["ours=m"], engine="upstream", options=options)
    model = asyncio.run(load(spec, load_settings()))
    Driver(model, seconds_max=10).close()
    return model


@pytest.fixture
def vllm() -> Iterator[StandIn]:
    with in_thread(token_server(lambda prompt: iter(()))) as server:
        yield server


def test_a_worker_of_texts_needs_nothing_of_an_engine() -> None:
    command = "import sys, workers.main, workers.engines.upstream.loader; print(*sys.modules)"
    listed = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not set(NOT_NEEDED) & set(listed.stdout.split())


def test_a_server_is_known_by_how_it_lists_its_models(vllm: StandIn) -> None:
    (info,) = loaded(urls=vllm.url).infos

    assert (info.name, info.engine, info.resume, info.context_length) == ("ours", "upstream", "prefill", 2048)


def test_the_class_is_what_all_upstreams_can_keep(vllm: StandIn) -> None:
    with in_thread(openai_chat()) as other:
        mixed = loaded(urls=[vllm.url, other.url]).infos[0]
        told = loaded(urls=[vllm.url, other.url], resume="prefill").infos[0]

    assert (mixed.resume, told.resume) == ("restart", "prefill")


def test_what_a_provider_lacks_is_no_capability() -> None:
    with in_thread(openai_chat()) as server:
        able = set(loaded(urls=server.url, provider="openai").infos[0].capabilities)

    assert {"chat", "tools", "images", "logprobs", "extra_parameters"} <= able
    assert not {"completions", "min_tokens", "ignore_eos", "embeddings"} & able


@pytest.mark.parametrize(
    ("listed", "lacks"),
    [
        ({"capabilities": ["chat", "completions", "tools"]}, MEDIA | {"reasoning"}),
        ({"capabilities": {"vision": False, "function_calling": True}}, {"images"}),
        ({"architecture": {"input_modalities": ["text", "image"]}}, {"audio", "video", "files"}),
        ({"capabilities": ["tools"], "architecture": None}, set()),
        ({}, set()),
    ],
)
def test_what_a_server_s_list_denies_is_lacking(listed: Any, lacks: set[str]) -> None:
    assert set(told_lacking(listed)) == lacks


def test_what_the_options_or_the_provider_deny_is_no_capability_and_is_refused_by_its_name() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    delivery = Delivery(job=replace(make_job(), request={"messages": [image]}), claim_token="t", attempt=1, log=())
    with in_thread(openai_chat()) as server:
        told = loaded(urls=server.url, lacks=["images", "tools"])
        of_provider = loaded(urls=server.url, provider="deepseek")
        able = loaded(urls=server.url)

    assert not {"images", "tools"} & set(told.infos[0].capabilities)
    assert not {"images", "audio", "video", "files"} & set(of_provider.infos[0].capabilities)
    for model in (told, of_provider):
        with pytest.raises(InvalidRequest, match="must not contain content of type 'image_url'"):
            model.begin(delivery)
    assert able.begin(delivery).delivery.job == delivery.job


def test_a_server_that_does_not_answer_yet_is_no_error() -> None:
    (info,) = loaded(urls="http://127.0.0.1:9/v1").infos

    assert info.resume == "restart"


def test_all_workers_with_the_same_url_key_and_model_share_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "a")
    monkeypatch.setenv("B_KEY", "b")
    url = "http://127.0.0.1:9/v1"

    (one,), (same,), (other,) = (
        loaded(urls=url, key=key, requests_per_minute=60).quotas
        for key in ("${env:A_KEY}", "${env:A_KEY}", "${env:B_KEY}")
    )

    assert (one.requests, one.name) == (60, same.name)
    assert other.name != one.name


def test_a_tokenizer_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="ENGINE_OPTION tokenizer: /no/such cannot be loaded"):
        loaded(urls="http://127.0.0.1:9/v1", tokenizer="/no/such")


def delivered(**more: Any) -> Delivery:
    """A delivery of a chat that may call a tool; `more` are fields of its request and of its sampling."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    request = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool],
        "tool_choice": "auto",
        "parallel": True,
    }
    sampling = {name: more.pop(name) for name in ("grammar", "min_tokens") if name in more}
    job = make_job(**sampling)
    return Delivery(job=replace(job, request=request | more), claim_token="t", attempt=1)


FORCED: dict[str, Any] = {"tool_choice": "required"}
NAMED: dict[str, Any] = {"tool_choice": "look"}
REGEX: dict[str, Any] = {
    "tools": [],
    "grammar": Grammar(kind=GrammarKind.REGEX, text="[0-9]+", param="structured_outputs"),
}


@pytest.mark.parametrize(
    ("asked", "param"), [(FORCED, "tool_choice"), (NAMED, "tool_choice"), (REGEX, "structured_outputs")]
)
@pytest.mark.parametrize("server", ["sglang", "llamacpp"])
def test_a_form_that_a_token_upstream_cannot_keep_is_refused_at_once(server: str, asked: Any, param: str) -> None:
    with in_thread(token_server(lambda prompt: iter(()), owned_by=server)) as standing:
        tokens = "llamacpp" if server == "llamacpp" else "completions"
        model = loaded(urls=standing.url, tokenizer=str(BUILTIN), tokens=tokens)

    with pytest.raises(InvalidRequest) as refused:
        model.begin(delivered(**asked))

    assert refused.value.param == param


@pytest.mark.parametrize("status", [403, 404])
def test_a_server_without_generate_is_told_at_once_and_what_to_do(status: int) -> None:
    standing = token_server(lambda prompt: iter(()))
    standing.faults.append(Fault(status=status, body={"error": {"message": "disabled"}}))

    with (
        in_thread(standing),
        pytest.raises(SettingsError, match=rf"answers {status} at /inference/v1/generate.*--enable-scale-out"),
    ):
        loaded(urls=standing.url, tokenizer=str(BUILTIN), tokens="generate")


def test_a_server_with_generate_is_asked_for_nothing_to_compute(vllm: StandIn) -> None:
    vllm.faults.append(Fault(status=400, body={"error": {"message": "body.token_ids: Field required"}}))

    (info,) = loaded(urls=vllm.url, tokenizer=str(BUILTIN), tokens="generate").infos

    assert info.resume == "exact"
    assert [(each.path, each.body) for each in vllm.received[1:]] == [("/inference/v1/generate", {})]


def test_a_server_of_generate_that_does_not_answer_yet_is_no_error() -> None:
    (info,) = loaded(urls="http://127.0.0.1:9/v1", tokenizer=str(BUILTIN), tokens="generate").infos

    assert info.resume == "exact"


@pytest.mark.parametrize("asked", [FORCED, NAMED, REGEX])
def test_vllm_keeps_every_form(vllm: StandIn, asked: Any) -> None:
    model = loaded(urls=vllm.url, tokenizer=str(BUILTIN))

    assert not model.begin(delivered(**asked)).done


def test_llamacpp_has_no_least_number_of_tokens(vllm: StandIn) -> None:
    model = loaded(urls=vllm.url, tokenizer=str(BUILTIN), tokens="llamacpp")

    with pytest.raises(InvalidRequest, match="min_tokens"):
        model.begin(delivered(min_tokens=3))
