"""vLLM makes vectors and scores."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForSequenceClassification

from tests.models import pair_tokenizer, random_model
from tests.vllm.conftest import Engines


@pytest.fixture
def ranker(tmp_path: Path) -> str:
    heads_of_64 = {"hidden_size": 128, "num_attention_heads": 2}  # vLLM's kernel for CPUs has none of 16
    more = {"max_position_embeddings": 128, "num_labels": 1, **heads_of_64}
    random_model(tmp_path / "ranker", "BertConfig", more, make=AutoModelForSequenceClassification.from_config)
    pair_tokenizer().save_pretrained(tmp_path / "ranker")
    return f"ranker={tmp_path / 'ranker'}"


def post(engines: Engines, route: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{engines.stack.base}/v1/{route}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_scores_are_those_of_our_own_engine(engines: Engines, ranker: str) -> None:
    asked = {"model": "ranker", "query": "who wrote it", "documents": ["she wrote it", "did she", "it"]}
    own = engines.own(ranker)
    engines.ready(1)
    wanted = post(engines, "rerank", asked)
    own.stop()

    worker = engines.vllm(ranker)
    engines.ready(1)
    found = post(engines, "rerank", asked)
    worker.stop()

    assert _scores(found) == pytest.approx(_scores(wanted), abs=1e-4)


def test_vectors_have_unit_length_and_belong_to_their_inputs(engines: Engines) -> None:
    asked = {"model": "vectors", "input": ["Hello, how are you?", "Count to ten.", "one two three"]}
    worker = engines.vllm("vectors=builtin", options=["--engine-option=runner=pooling"])
    engines.ready(1)
    first = post(engines, "embeddings", asked)["data"]
    again = post(engines, "embeddings", {**asked, "input": asked["input"][::-1]})["data"]
    worker.stop()

    assert [len(each["embedding"]) for each in first] == [len(first[0]["embedding"])] * 3
    assert sum(x * x for x in first[0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert again[2]["embedding"] == pytest.approx(first[0]["embedding"], abs=1e-3)
    assert first[0]["embedding"] != pytest.approx(first[1]["embedding"], abs=1e-2)


def _scores(answer: Any) -> list[float]:
    return [each["relevance_score"] for each in sorted(answer["results"], key=lambda each: int(each["index"]))]
