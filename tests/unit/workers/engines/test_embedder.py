"""Vectors agree with the model's own code and pooling, whatever else is in the batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import normalize

from shared.domain.errors import InvalidRequest, SettingsError
from shared.queue.protocols import Delivery
from shared.settings import load_settings
from tests.factories import make_job
from tests.models import pair_tokenizer, random_model, ranking_model
from workers.engines.native.embedding.cross_encoder import CrossEncoder
from workers.engines.native.embedding.embedder import ModelEmbedder, PackedEmbedder
from workers.engines.native.loader import load_torch_engine
from workers.loading.model_spec import BUILTIN
from workers.protocols import Engine
from workers.runs.embedding import Embedding
from workers.runs.generation import Generation
from workers.text.chat_tokenizer import ChatTokenizer

SIZES = {"vocab_size": 2048, "max_position_embeddings": 128}
IDS = {f"{name}_token_id": 0 for name in ("pad", "eos", "bos", "cls", "sep")}
# A small configuration of transformers, and the embedder that its models should get.
ENCODERS: dict[str, tuple[str, dict[str, Any], type]] = {
    "BERT": ("BertConfig", {}, PackedEmbedder),
    "RoBERTa": ("RobertaConfig", {}, PackedEmbedder),
    "XLM-RoBERTa": ("XLMRobertaConfig", {}, PackedEmbedder),
    "ModernBERT": ("ModernBertConfig", {"local_attention": 8} | IDS, ModelEmbedder),
    "MPNet": ("MPNetConfig", {}, ModelEmbedder),
}
PASSAGES = [[3 + (5 * i) % 200 for i in range(length)] for length in (1, 40, 7, 23)]


def make_folder(folder: Path, config: str, more: dict[str, Any]) -> Any:
    return random_model(folder, config, SIZES | more, make=transformers.AutoModel.from_config)


def add_modules(folder: Path, pooling: dict[str, Any], dense: torch.Tensor | None = None) -> None:
    """Write the files that sentence-transformers writes beside a model."""
    names = ["Transformer", "Pooling", *(["Dense"] if dense is not None else []), "Normalize"]
    modules = [{"idx": i, "path": f"{i}_{name}" if i else "", "type": f"st.{name}"} for i, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if dense is not None:
        (folder / "2_Dense").mkdir()
        shape = {"in_features": dense.shape[1], "out_features": dense.shape[0], "bias": False}
        activation = {"activation_function": "torch.nn.modules.linear.Identity"}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(shape | activation))
        save_file({"linear.weight": dense}, folder / "2_Dense" / "model.safetensors")


def vectors(engine: Engine, passages: list[list[int]]) -> torch.Tensor:
    assert engine.embedder
    return torch.tensor(engine.embedder.embed(passages))


@torch.inference_mode()
def hidden(model: Any, passage: list[int]) -> torch.Tensor:
    """Hidden states of one passage, by the model's own code."""
    states: torch.Tensor = model(input_ids=torch.tensor([passage])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_the_mean_of_its_own_states(tmp_path: Path, name: str) -> None:
    config, more, embedder = ENCODERS[name]
    model = make_folder(tmp_path, config, more)

    engine = load_torch_engine(str(tmp_path), load_settings())

    assert type(engine.embedder) is embedder
    expected = torch.stack([normalize(hidden(model, passage).mean(0), dim=0) for passage in PASSAGES])
    torch.testing.assert_close(vectors(engine, PASSAGES), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("flag", "pooled"),
    [
        ("pooling_mode_cls_token", lambda states: states[0]),
        ("pooling_mode_lasttoken", lambda states: states[-1]),
        ("pooling_mode_max_tokens", lambda states: states.amax(0)),
        ("pooling_mode_mean_sqrt_len_tokens", lambda states: states.sum(0) / len(states) ** 0.5),
    ],
)
def test_the_folder_says_how_to_pool(tmp_path: Path, flag: str, pooled: Any) -> None:
    model = make_folder(tmp_path, "BertConfig", {})
    dense = torch.randn(10, 64)
    add_modules(tmp_path, {flag: True, "pooling_mode_mean_tokens": False}, dense)

    engine = load_torch_engine(str(tmp_path), load_settings())

    expected = torch.stack([normalize(dense @ pooled(hidden(model, passage)), dim=0) for passage in PASSAGES])
    torch.testing.assert_close(vectors(engine, PASSAGES), expected, atol=1e-5, rtol=0)
    assert engine.embedder
    assert (engine.embedder.size, engine.embedder.tokens_max, engine.limits.context_length) == (10, 48, 48)


@pytest.mark.parametrize("completion", [None, {"prompts": ["a"], "echo": False}])
def test_a_model_that_only_embeds_refuses_to_write(tmp_path: Path, completion: Any) -> None:
    make_folder(tmp_path, "BertConfig", {})
    engine = load_torch_engine(str(tmp_path), load_settings())

    with pytest.raises(InvalidRequest, match="writes no text") as refused:
        Generation(Delivery(job=make_job(completion=completion), claim_token="e", attempt=1), engine)
    assert (engine.kind, refused.value.param) == ("embedding", "model")


def test_a_module_that_is_not_known_stops_the_start(tmp_path: Path) -> None:
    make_folder(tmp_path, "BertConfig", {})
    add_modules(tmp_path, {"pooling_mode": "mean"})
    listed = (tmp_path / "modules.json").read_text().replace("st.Normalize", "st.WordWeights")
    (tmp_path / "modules.json").write_text(listed)

    with pytest.raises(SettingsError, match="WordWeights"):
        load_torch_engine(str(tmp_path), load_settings())


def test_neighbours_change_nothing() -> None:
    engine = load_torch_engine(str(BUILTIN), load_settings(kv_cache_gib=0.1))

    alone = torch.cat([vectors(engine, [passage]) for passage in PASSAGES])

    torch.testing.assert_close(vectors(engine, PASSAGES), alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors(engine, PASSAGES[::-1]).flip(0), alone, atol=1e-6, rtol=0)


def test_a_model_that_writes_also_embeds() -> None:
    engine = load_torch_engine(str(BUILTIN), load_settings(kv_cache_gib=0.1))
    base = transformers.AutoModel.from_pretrained(BUILTIN, dtype=torch.float32).eval()

    expected = torch.stack([normalize(hidden(base, passage).mean(0), dim=0) for passage in PASSAGES])

    torch.testing.assert_close(vectors(engine, PASSAGES), expected, atol=1e-5, rtol=0)


def test_texts_keep_their_special_tokens_when_cut() -> None:
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "one": 3, "two": 4, "three": 5}
    fast = tokenizers.Tokenizer(WordLevel(words, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = ChatTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=fast), frozenset(), vocabulary=6)

    assert tokenizer.encode_text("one two three") == [1, 3, 4, 5, 2]
    assert tokenizer.encode_text("one two three", 4) == [1, 3, 4, 2]


def test_a_cross_encoder_scores_as_its_own_code_does(tmp_path: Path) -> None:
    model = ranking_model(tmp_path)
    tokenizer = pair_tokenizer()
    documents = ["she did", "it it", "who wrote it who wrote it", "it"]
    pairs = [tokenizer("who wrote it", document, return_tensors="pt") for document in documents]
    with torch.inference_mode():
        own = [model(**pair).logits.sigmoid().item() for pair in pairs]

    engine = load_torch_engine(str(tmp_path), load_settings())
    request = {"inputs": ["who wrote it", *documents], "dimensions": None, "truncate": None}
    run = Embedding(Delivery(job=make_job(completion=request | {"rank": True}), claim_token="e", attempt=1), engine)

    assert list(run.left) == [1, 2, 3, 4]
    scores = vectors(engine, run.passages[1:])[:, 0]
    torch.testing.assert_close(scores, torch.tensor(own), atol=1e-5, rtol=0)
    assert scores.std() > 0.01
    with pytest.raises(InvalidRequest, match="only ranks"):
        Embedding(Delivery(job=make_job(completion=request), claim_token="e", attempt=1), engine)


def test_a_pair_is_cut_in_its_text() -> None:
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    scorer = CrossEncoder(model, pair_tokenizer(), tokens_max=128)

    assert scorer.pair("who wrote", "she did it", None) == [2, 4, 5, 3, 7, 8, 6, 3]
    assert scorer.pair("who wrote", "she did it", 6) == [2, 4, 5, 3, 7, 3]
