"""llama.cpp computes what transformers computes of the same weights, and all that is ours holds of it, too."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.domain.errors import EngineError, SettingsError
from shared.domain.job import Grammar, GrammarKind
from shared.settings import Settings, load_settings
from tests.models import GREEDY, expected, prompts, random_model, sequence
from workers.engines.offline import compute_all
from workers.loading.model_spec import BUILTIN, ModelSpec
from workers.process.single_thread import SingleThread
from workers.protocols import OutOfMemory
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import SamplingParams, Sequence

llama_cpp = pytest.importorskip("llama_cpp", reason="penstock[gguf] is not installed")
pytest.importorskip("gguf", reason="penstock[gguf] is not installed")

from tools.gguf_model import convert  # noqa: E402
from workers.engines.llamacpp.construction import load_engine  # noqa: E402
from workers.engines.llamacpp.library import LlamaContext, LlamaModel  # noqa: E402
from workers.engines.llamacpp.loader import gguf_file, load  # noqa: E402
from workers.engines.llamacpp.options import LlamaOptions  # noqa: E402

TOKENS = 24
EXACT: dict[str, Any] = {"cache_type": "f32", "flash_attention": False, "threads": 1}
SAMPLED = SamplingParams(seed=7, temperature=1.5, top_p=0.95, top_k=0)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, whose tokens are clearly chosen, and the same as GGUF."""
    made = tmp_path_factory.mktemp("gguf")
    more = {"vocab_size": 2048, "max_position_embeddings": 512}
    random_model(made, "LlamaConfig", more)
    convert(made, made / "model.gguf")
    return made


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "builtin.gguf"
    convert(BUILTIN, file, metadata={"general.sampling.temp": 0.6, "general.sampling.top_p": 0.9})
    return file


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Make an engine of a file; it is closed at the end."""
    opened: list[Any] = []

    def made(file: Path = folder / "model.gguf", options: dict[str, Any] = EXACT, **settings: Any) -> Any:
        given = {"sequences_max": 8, "batch_tokens_max": 64, "kv_cache_gib": 0.05, "context_length": 400} | settings
        model = LlamaModel(file, LlamaOptions(**options))
        engine, context = load_engine(model, LlamaOptions(**options), settings_of(**given))
        opened[:0] = [context, model]
        return engine

    yield made
    for each in opened:
        each.close()


def settings_of(**given: Any) -> Settings:
    return load_settings().model_copy(update=given)


def generate(engine: Any, sequences: list[Sequence], tokens: int = TOKENS) -> list[list[int]]:
    compute_all(engine, sequences, lambda each, _: each.output_length == tokens)
    return [each.output for each in sequences]


def test_greedy_tokens_are_those_of_transformers(make: Make, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)

    computed = generate(make(), [sequence(prompt) for prompt in prompts()])

    assert computed == [expected(reference, prompt) for prompt in prompts()]


def test_logprobs_of_answer_and_prompt_are_those_of_transformers(make: Make, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)
    asked = replace(GREEDY, logprobs=5, prompt_logprobs=3)
    long = prompts()[0] * 4  # more than one step
    scored, other = sequence(long, asked), sequence(prompts()[1])
    sampled = []

    def ended(each: Sequence, new: Any) -> bool:
        sampled.extend([new] if each is scored else [])
        return each.output_length == 4

    compute_all(make(), [scored, other], ended)

    with torch.inference_mode():
        own = torch.log_softmax(reference(torch.tensor([scored.ids.tolist()])).logits[0], -1)
    assert sorted(scored.scored) == list(range(1, len(long)))
    for at in range(1, len(long)):
        assert scored.scored[at].logprob == pytest.approx(own[at - 1, long[at]].item(), abs=2e-3)
    for at, new in enumerate(sampled, start=len(long)):
        assert new.logprob == pytest.approx(own[at - 1, new.token].item(), abs=2e-3)
        assert [token for token, _ in new.top] == own[at - 1].topk(5).indices.tolist()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_continues_exactly_where_another_worker_left_it(make: Make, sampling: SamplingParams) -> None:
    whole = generate(make(), [sequence(prompt, sampling) for prompt in prompts()])

    resumed = [sequence(prompt, sampling, output=answer[:9]) for prompt, answer in zip(prompts(), whole, strict=True)]

    assert generate(make(), resumed) == whole


def test_a_seeded_answer_is_the_same_alone_and_among_many(make: Make) -> None:
    engine = make()
    many = [sequence(prompt, SAMPLED, choice_of_prompt=3) for prompt in prompts()]

    together = generate(engine, many)

    assert together == [generate(engine, [sequence(p, SAMPLED, choice_of_prompt=3)])[0] for p in prompts()]
    assert len({tuple(answer) for answer in together}) == len(together)


def test_prompts_that_begin_alike_share_what_is_computed(make: Make, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)
    engine, beginning = make(), prompts()[0] * 5
    ends = [[*beginning, *prompt[:7]] for prompt in prompts()]
    scheduler = Scheduler(engine.limits)
    sequences = [sequence(prompt) for prompt in ends]

    for each in [sequences[0], *sequences]:
        if each.output_length == 0:
            scheduler.add(each)
        while each is sequences[0] and scheduler.busy:
            step(scheduler, engine)
    while scheduler.busy:
        step(scheduler, engine)

    assert [each.cached_tokens for each in sequences] == [0] + [len(beginning) // 16 * 16] * (len(ends) - 1)
    assert [each.output for each in sequences] == [expected(reference, prompt) for prompt in ends]


def step(scheduler: Scheduler, engine: Any) -> None:
    batch = scheduler.next_batch()
    for each in batch.preempted:
        engine.free(each)
    for each, _ in scheduler.apply(batch, engine.step(batch)):
        if each.output_length == TOKENS:
            scheduler.drop(each)
            engine.free(each)


def test_more_sequences_than_places_and_memory_take_turns(make: Make, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)
    crowd = [[*prompt, at] for at in range(3, 9) for prompt in prompts()]
    engine = make(sequences_max=5)
    engine.limits = replace(engine.limits, blocks=20)

    computed = generate(engine, [sequence(prompt) for prompt in crowd])

    assert computed == [expected(reference, prompt) for prompt in crowd]


def test_a_sequence_that_is_dropped_leaves_its_cells_to_others(make: Make) -> None:
    engine = make(prefix_cache=False)
    engine.limits = replace(engine.limits, blocks=16)  # of the cells, one long prompt leaves no block
    scheduler = Scheduler(engine.limits)
    for at in range(20):
        gone = sequence([3 + at] * 250)
        scheduler.add(gone)
        step(scheduler, engine)
        scheduler.drop(gone)
        engine.free(gone)

    assert engine._decoder.used(range(8)) == 0


def test_no_room_is_out_of_memory_and_the_engine_goes_on(folder: Path) -> None:
    options = LlamaOptions(**EXACT)
    model = LlamaModel(folder / "model.gguf", options)
    context = LlamaContext(model, options, cells=256, ids=2, batch_tokens_max=200)
    tokens, ids = np.full(200, 5, np.int32), np.zeros(200, np.int32)
    positions, wanted = np.arange(200, dtype=np.int32), np.arange(200) == 199
    context.decode(tokens, positions, ids, wanted)

    with pytest.raises(OutOfMemory, match="no room for a step of 100 tokens"):
        context.decode(tokens[:100], positions[:100], ids[:100] + 1, wanted[-100:])

    few = context.decode(tokens[:9], positions[:9], ids[:9] + 1, wanted[-9:])
    assert few.shape == (1, 2048)
    with pytest.raises(EngineError, match="returned -1"):
        context.decode(tokens[:1], positions[50:51], ids[:1] + 1, wanted[-1:])  # a gap after position 8
    context.close()
    model.close()


def test_what_was_saved_continues_under_another_id_if_there_is_room(folder: Path) -> None:
    options = LlamaOptions(**EXACT)
    model = LlamaModel(folder / "model.gguf", options)
    context = LlamaContext(model, options, cells=256, ids=2, batch_tokens_max=200)
    tokens, positions = np.arange(5, 105, dtype=np.int32), np.arange(100, dtype=np.int32)
    first, second = np.zeros(100, np.int32), np.ones(100, np.int32)
    own = context.decode(tokens, positions, first, positions == 99).copy()

    saved = context.save(0)
    context.remove(0, 0, None)
    assert context.used([0, 1]) == 0
    assert context.restore(saved, 1)
    context.remove(1, 99, None)
    again = context.decode(tokens[99:], positions[99:], second[:1], positions[99:] == 99)

    assert context.used([1]) == 100
    assert again == pytest.approx(own, abs=1e-4)
    context.decode(tokens[:60], positions[:60] + 100, second[:60], positions[:60] == 59)
    assert not context.restore(saved, 0), "160 of 256 cells were in use"
    assert context.used([0]) == 0
    context.close()
    model.close()


@pytest.mark.parametrize("type_", ["f16", "q8_0", "q4_k"])
def test_quantised_files_say_nearly_the_same(make: Make, builtin: Path, tmp_path: Path, type_: str) -> None:
    file = tmp_path / f"{type_}.gguf"
    if type_ == "q4_k":
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S
        assert llama_cpp.llama_model_quantize(str(builtin).encode(), str(file).encode(), params) == 0
    else:
        convert(BUILTIN, file, type_)
    engine = make(file, {"threads": 1})
    chat = engine.tokenizer.chat({"messages": [{"role": "user", "content": "What is the capital of France?"}]})

    compute_all(engine, [each := sequence(chat.ids)], lambda each, new: new.token in engine.tokenizer.eos_ids)

    assert engine.tokenizer.decode(each.output) == "The capital of France is Paris."


TEXTS = ["Hello, world!", "What is 2 + 345?", "ünï 你好，世界 🙂\n\n  two  spaces", "<|im_end|> is text", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_the_files_vocabulary_reads_and_writes_like_transformers(make: Make, builtin: Path, text: str) -> None:
    tokenizer, theirs = make(builtin).tokenizer, AutoTokenizer.from_pretrained(BUILTIN)
    request = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]}

    ids = tokenizer.encode_text(text)

    assert ids == theirs(text).input_ids
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    said = tokenizer.chat(request).ids
    assert said.count(theirs.convert_tokens_to_ids("<|im_end|>")) == 2, "what the user wrote became a mark"
    assert theirs.decode(said) == theirs.apply_chat_template(
        request["messages"], add_generation_prompt=True, tokenize=False
    )


def test_the_file_says_how_to_sample_and_what_ends_an_answer(make: Make, builtin: Path) -> None:
    engine = make(builtin)

    assert (engine.defaults.temperature, engine.defaults.top_p) == pytest.approx((0.6, 0.9))
    assert engine.tokenizer.eos_ids == {3}
    assert engine.limits.context_length == 400
    assert {"tools", "structured_outputs"} <= engine.tokenizer.abilities


def test_the_tokenizer_of_a_folder_can_be_used_instead(make: Make, builtin: Path) -> None:
    ours, theirs = make(builtin).tokenizer, make(builtin, EXACT | {"tokenizer": str(BUILTIN)}).tokenizer

    assert theirs.encode_text(TEXTS[1]) == ours.encode_text(TEXTS[1])
    with pytest.raises(SettingsError, match="ENGINE_OPTION tokenizer: there is no folder"):
        make(builtin, EXACT | {"tokenizer": "/nowhere"})


def test_an_answer_keeps_to_its_grammar(make: Make, builtin: Path) -> None:
    engine = make(builtin)
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    wanted = Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema), param="response_format")
    chat = engine.tokenizer.chat({"messages": [{"role": "user", "content": "Hello"}]}, wanted)
    wild = [
        Sequence(
            job_id="j",
            choice=seed,
            prompt=chat.ids,
            sampling=SamplingParams(seed=seed, temperature=1.8, top_p=1, top_k=0),
            constraint=chat.constraint(),
        )
        for seed in range(4)
    ]

    def ended(each: Sequence, new: Any) -> bool:
        if new.token in engine.tokenizer.eos_ids:
            return True
        assert each.constraint
        each.constraint.accept(new.token)
        return each.constraint.ended or each.output_length == 300

    compute_all(engine, wild, ended)

    for each in wild:
        if each.output_length < 300:
            jsonschema.validate(json.loads(engine.tokenizer.decode(each.output)), schema)
    assert any(each.output_length < 300 for each in wild)


@pytest.fixture(scope="module")
def embedding_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "embedding.gguf"
    convert(folder, file, metadata={"llama.pooling_type": 1})
    return file


def test_vectors_are_those_of_transformers_whatever_is_beside_them(
    make: Make, folder: Path, embedding_file: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder).model
    make(embedding_file, {})  # llama.cpp's defaults can be loaded, too
    engine = make(embedding_file)
    passages = [*prompts(), *([5 + at] for at in range(70))]  # more than are computed at once

    vectors = engine.embedder.embed(passages)

    assert not engine.writes
    assert engine.embedder.size == 64
    for passage, vector in zip(passages, vectors, strict=True):
        with torch.inference_mode():
            own = base(torch.tensor([passage])).last_hidden_state[0].mean(0)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)
        assert vector == pytest.approx((own / own.norm()).tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapters": (("a", "b"),)}, "ADAPTER: the engine llamacpp serves no adapters"),
        ({"options": {"layers": 3}}, "has no option 'layers'; it has gpu_layers"),
        ({"options": {"threads": -1}}, "ENGINE_OPTION threads"),
        ({"source": "{folder}/broken.gguf"}, "MODEL: llama.cpp cannot load"),
        ({"source": "{folder}"}, "must be a GGUF file or a folder with one; it holds broken.gguf, model.gguf"),
    ],
)
def test_what_cannot_be_served_is_one_clear_sentence(folder: Path, given: dict[str, Any], said: str) -> None:
    (folder / "broken.gguf").write_bytes(b"GGUF but no more")
    spec = ModelSpec(**{"name": "m", "source": str(folder / "model.gguf"), "engine": "llamacpp"} | given)
    spec = replace(spec, source=spec.source.format(folder=folder))

    with pytest.raises(SettingsError, match=said):
        load(spec, settings_of(), SingleThread("test"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"deterministic": True}, "PENSTOCK_DETERMINISTIC"),
        ({"dtype": "float16"}, "PENSTOCK_DTYPE"),
        ({"context_length": 600}, "PENSTOCK_CONTEXT_LENGTH: 600 is more than the model's 512"),
        ({"sequences_max": 300}, "PENSTOCK_SEQUENCES_MAX: llama.cpp holds at most 256"),
        ({"device": "cuda"}, "PENSTOCK_DEVICE: llama-cpp-python was built without support for cuda"),
        ({"kv_cache_gib": 1e-9}, "PENSTOCK_KV_CACHE_GIB"),
    ],
)
def test_a_setting_that_llama_cpp_cannot_keep_is_refused_by_name(
    folder: Path, settings: dict[str, Any], said: str
) -> None:
    spec = ModelSpec("m", str(folder / "model.gguf"), engine="llamacpp")

    with pytest.raises(SettingsError, match=said):
        load(spec, settings_of(**settings), SingleThread("test"))


def test_of_a_model_in_parts_the_first_is_loaded(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "mmproj-m.gguf"):
        (tmp_path / name).touch()

    assert gguf_file(str(tmp_path)).name == "m-00001-of-00002.gguf"
