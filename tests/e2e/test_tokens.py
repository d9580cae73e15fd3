"""Tokenizing, detokenizing and reranking by a worker of the model."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, standalone_stack
from tests.models import ranking_model
from workers.loading.model_spec import BUILTIN as FOLDER

TEXT = "Hello, what is 3 + 4? 你好 🦊"
CHAT = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def ask(stack: Stack, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{stack.base}/v1/{path}", json={"model": BUILTIN, **body}, timeout=30)


def test_a_text_becomes_its_tokens_and_they_the_text(builtin: Stack, tokenizer: Any) -> None:
    split = ask(builtin, "tokenize", prompt=TEXT, return_token_strs=True).json()

    assert split["tokens"] == tokenizer(TEXT).input_ids
    assert split["count"] == len(split["tokens"]) == len(split["token_strs"])
    assert split["max_model_len"] == 2048
    assert ask(builtin, "detokenize", tokens=split["tokens"]).json()["prompt"] == TEXT


def test_special_tokens_are_left_out_when_told_so(builtin: Stack, tokenizer: Any) -> None:
    split = ask(builtin, "tokenize", prompt=TEXT, add_special_tokens=False).json()

    assert split["tokens"] == tokenizer(TEXT, add_special_tokens=False).input_ids
    assert split["token_strs"] is None


def test_a_chat_counts_as_its_template_writes_it(builtin: Stack) -> None:
    usage = builtin.client().chat.completions.create(model=BUILTIN, messages=CHAT, max_tokens=1).usage  # type: ignore[arg-type]
    counted = ask(builtin, "token_count", messages=CHAT, max_tokens=2000).json()

    assert usage
    assert counted["count"] == usage.prompt_tokens
    assert counted["fits"] is True
    assert ask(builtin, "token_count", messages=CHAT, max_tokens=2048).json()["fits"] is False


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, None),
        ("tokenize", {"prompt": "x", "messages": CHAT}, None),
        ("tokenize", {"prompt": "x", "tools": []}, None),
        ("detokenize", {"tokens": [5000]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens.0"),
        ("token_count", {"messages": []}, "messages"),
        ("rerank", {"query": "x", "documents": []}, "documents"),
        ("rerank", {"query": "x", "documents": ["a"], "top_n": 0}, "top_n"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    builtin: Stack, path: str, body: dict[str, Any], param: str | None
) -> None:
    if path == "tokenize" and "tools" in body:
        body = body | {"tools": [{"type": "function", "function": {"name": "f"}}]}
    answer = ask(builtin, path, **body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_documents_are_ranked_by_how_near_they_are(builtin: Stack) -> None:
    documents = ["The capital of France is Paris.", "Hello! How can I help you today?", "One two three."]

    ranked = ask(builtin, "rerank", query="Hello! How can I help you today?", documents=documents, top_n=2).json()

    first, second = ranked["results"]
    assert first["index"] == 1
    assert first["relevance_score"] == pytest.approx(1, abs=1e-3)
    assert first["document"] == {"text": documents[1]}
    assert second["relevance_score"] < first["relevance_score"]
    assert ranked["usage"]["total_tokens"] > 10
    plain = ask(builtin, "rerank", query="x", documents=[{"text": "y"}], return_documents=False).json()
    assert "document" not in plain["results"][0]


def test_a_cross_encoder_ranks_by_its_scores_and_makes_no_embeddings(tmp_path: Path) -> None:
    ranking_model(tmp_path / "ranker")
    documents = ["she did", "it it", "who wrote it"]
    with standalone_stack(tmp_path, str(tmp_path / "ranker")) as stack:
        ranked = ask(stack, "rerank", model="ranker", query="who wrote it", documents=documents)
        refused = ask(stack, "embeddings", model="ranker", input="it")
        listed = httpx.get(f"{stack.base}/v1/models/ranker").json()

    scores = [result["relevance_score"] for result in ranked.json()["results"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert listed["capabilities"] == ["rerank"]


def test_texts_are_scored_beside_one_or_each_beside_its_own(builtin: Stack) -> None:
    texts = ["Hello! How can I help you today?", "One two three."]
    beside_one = ask(builtin, "score", text_1=texts[0], text_2=texts).json()
    in_pairs = ask(builtin, "score", text_1=texts, text_2=texts[::-1]).json()

    ranked = ask(builtin, "rerank", query=texts[0], documents=texts).json()["results"]
    assert [each["index"] for each in beside_one["data"]] == [0, 1]
    assert [each["score"] for each in beside_one["data"]] == pytest.approx(
        [each["relevance_score"] for each in sorted(ranked, key=lambda result: result["index"])]
    )
    assert [each["index"] for each in in_pairs["data"]] == [0, 1]
    assert all(each["score"] == pytest.approx(beside_one["data"][1]["score"], abs=1e-3) for each in in_pairs["data"])
    assert in_pairs["usage"]["total_tokens"] > beside_one["usage"]["total_tokens"]
    unversioned = httpx.post(f"{builtin.base}/score", json={"model": BUILTIN, "text_1": ["a"], "text_2": "b"})
    assert len(unversioned.json()["data"]) == 1


def test_pooled_vectors_are_embeddings_by_another_name(builtin: Stack) -> None:
    pooled = ask(builtin, "pooling", input=["a", "b"], task="embed").json()
    by_path = httpx.post(f"{builtin.base}/v1/engines/{BUILTIN}/embeddings", json={"input": ["a", "b"]}, timeout=30)

    embedded = ask(builtin, "embeddings", input=["a", "b"]).json()
    for each, other, vector in zip(pooled["data"], by_path.json()["data"], embedded["data"], strict=True):
        assert each["object"] == "pooling"
        assert each["data"] == pytest.approx(vector["embedding"], abs=1e-4)
        assert other["embedding"] == pytest.approx(vector["embedding"], abs=1e-4)


def test_prompts_are_checked_as_fastchat_does(builtin: Stack) -> None:
    prompts = [
        {"model": BUILTIN, "prompt": TEXT, "max_tokens": 5},
        {"model": BUILTIN, "prompt": "x", "max_tokens": 3000},
    ]
    checked = httpx.post(f"{builtin.base}/api/v1/token_check", json={"prompts": prompts}, timeout=30).json()["prompts"]

    count = ask(builtin, "tokenize", prompt=TEXT).json()["count"]
    assert checked[0] == {"fits": True, "tokenCount": count, "contextLength": 2048}
    assert checked[1]["fits"] is False


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("score", {"text_1": ["a", "b"], "text_2": ["a"]}, None),
        ("score", {"text_1": ["a"] * 65, "text_2": ["a"] * 65}, None),
        ("score", {"text_1": "", "text_2": "b"}, "text_1"),
        ("score", {"text_1": "a"}, "text_2"),
        ("pooling", {"input": "a"}, "task"),
        ("pooling", {"input": "a", "task": "token_embed"}, "task"),
        ("classify", {"input": "a"}, "model"),
        (f"engines/{BUILTIN}/embeddings", {"input": "a", "model": "other"}, "model"),
    ],
)
def test_what_no_model_here_does_is_refused(builtin: Stack, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = ask(builtin, path, **body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_models_are_listed_as_vllm_lists_them(builtin: Stack) -> None:
    listed = httpx.get(f"{builtin.base}/v1/models/{BUILTIN}").json()

    assert (listed["root"], listed["max_model_len"]) == (BUILTIN, 2048)
