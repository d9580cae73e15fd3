"""Every family of models agrees with transformers: alone, in a batch, in chunks, and after a resume."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from shared.settings import load_settings
from tests.models import GREEDY, TOKENS, expected, generate, prompts, random_model, sequence
from workers.engines.native.engine_selection import engine_for
from workers.engines.native.loader import load_torch_engine
from workers.protocols import Defaults, Engine
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sampled, SamplingParams, Sequence

pytestmark = pytest.mark.slow
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 48,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


@dataclass(frozen=True)
class Family:
    """A small configuration class of transformers, and the engine that its models should get."""

    config: str
    more: dict[str, Any] = field(default_factory=dict)
    engine: str = "batched"
    exact: bool = True  # exact in deterministic mode, whatever shares the batch


FAMILIES = {
    "Llama": Family("LlamaConfig"),
    "Mistral, sliding window": Family("MistralConfig", {"sliding_window": 16}),
    "Qwen2": Family("Qwen2Config"),
    "Qwen3": Family("Qwen3Config", {"head_dim": 24}),
    "Gemma 2, capped scores": Family("Gemma2Config", {"head_dim": 16, "attn_logit_softcapping": 2.0}),
    "Gemma 3": Family("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16, "num_hidden_layers": 7}),
    "Phi-3": Family("Phi3Config"),
    "GLM-4": Family("Glm4Config", {"head_dim": 16}),
    "OLMo 2": Family("Olmo2Config"),
    "Granite": Family("GraniteConfig", {"attention_multiplier": 0.2, "logits_scaling": 2.0}),
    "GPT-2": Family("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "Falcon": Family("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}, "stepwise", exact=False),
    "Falcon, ALiBi": Family("FalconConfig", {"alibi": True, "multi_query": False}, "stepwise", exact=False),
    "GLM": Family("GlmConfig", {"head_dim": 16}),
    "GPT-NeoX": Family("GPTNeoXConfig"),
    "OPT": Family("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Cohere": Family("CohereConfig"),
    "DeepSeek-V3": Family("DeepseekV3Config", LATENT, exact=False),
    "BLOOM": Family("BloomConfig", {"n_layer": 2, "n_head": 4}, "stepwise", exact=False),
    "Mixtral": Family("MixtralConfig", {"num_local_experts": 4}, exact=False),
    "Qwen3-MoE": Family("Qwen3MoeConfig", {**EXPERTS, "head_dim": 16}, exact=False),
    "gpt-oss, attention sinks": Family(
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
        exact=False,
    ),
    "Mamba": Family("MambaConfig", {"state_size": 8}, "stepwise", exact=False),
}


@dataclass(frozen=True)
class Case:
    reference: Any
    engine: Engine
    family: Family


@pytest.fixture(scope="module", params=FAMILIES, ids=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Make a random model, save it, and load it like any other."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp("model")
    reference = random_model(folder, family.config, family.more)
    return Case(reference, load_torch_engine(str(folder), load_settings(sequences_max=8, batch_tokens_max=24)), family)


def test_it_gets_the_engine_that_computes_right(case: Case) -> None:
    assert case.engine.kind == case.family.engine


def test_greedy_tokens_equal_transformers_alone_and_batched(case: Case) -> None:
    wanted = [expected(case.reference, prompt) for prompt in prompts()]

    assert generate(case.engine, [sequence(prompt) for prompt in prompts()]) == wanted
    assert [generate(case.engine, [sequence(prompt)])[0] for prompt in prompts()] == wanted


def test_a_seeded_draw_is_the_same_alone_batched_and_resumed(case: Case) -> None:
    sampling = [SamplingParams(seed=n, temperature=0.9, top_p=0.9, top_k=50) for n in range(6)]
    pairs = list(zip(prompts(), sampling, strict=True))

    batched = generate(case.engine, [sequence(prompt, how) for prompt, how in pairs], 16)

    assert [generate(case.engine, [sequence(prompt, how)], 16)[0] for prompt, how in pairs] == batched
    resumed = [sequence(prompt, how, output=done[:7]) for (prompt, how), done in zip(pairs, batched, strict=True)]
    assert generate(case.engine, resumed, 16) == batched


def test_a_shared_beginning_and_a_cache_too_small_for_all_change_no_token(case: Case) -> None:
    beginning = [3 + 7 * i % 290 for i in range(56)]
    asked = [beginning + prompt[:20] for prompt in prompts()]
    wanted = [expected(case.reference, prompt) for prompt in asked]
    roomy = case.engine.limits
    case.engine.limits = replace(roomy, blocks=16, context_length=256)
    try:
        sequences = [sequence(prompt) for prompt in asked]
        assert generate(case.engine, sequences) == wanted
    finally:
        case.engine.limits = roomy
    if case.family.engine == "batched":
        assert max(each.cached_tokens or 0 for each in sequences) >= 48


def test_prompts_are_scored_as_the_models_own_code_scores_them(case: Case) -> None:
    asked = [prompt for prompt in prompts() if len(prompt) > 1]
    scoring = replace(GREEDY, prompt_logprobs=3)
    sequences = [sequence(prompt, scoring) for prompt in [*asked, asked[0]]]  # equal prompts share nothing
    generate(case.engine, [*sequences, sequence(asked[0])], 4)

    for each in sequences:
        ids = torch.tensor([each.ids[: each.prompt_length].tolist()])
        with torch.inference_mode():
            wanted = torch.log_softmax(case.reference(input_ids=ids, use_cache=False).logits[0].float(), -1)
        assert list(each.scored) == list(range(1, each.prompt_length))
        for at, known in each.scored.items():
            assert known.token == each.ids[at]
            assert known.logprob == pytest.approx(wanted[at - 1, known.token].item(), abs=2e-3)
            assert [value for _, value in known.top] == pytest.approx(wanted[at - 1].topk(3).values.tolist(), abs=2e-3)


def test_in_deterministic_mode_logits_are_equal_bit_for_bit_however_they_are_computed(case: Case) -> None:
    expect_equal_bits(case)


@pytest.mark.parametrize("case", ["Llama"], indirect=True)
def test_so_they_are_with_several_threads(case: Case) -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expect_equal_bits(case)
    finally:
        torch.set_num_threads(usual)


def expect_equal_bits(case: Case) -> None:
    limits = replace(case.engine.limits, blocks=0)
    exact = load_settings(sequences_max=8, deterministic=True)
    arguments: Any = (copy.deepcopy(case.reference), case.engine.tokenizer, limits, Defaults(), exact)
    engine = engine_for(*arguments)
    assert engine.kind == ("batched" if case.family.exact else "stepwise")
    answers = generate(engine, [sequence(prompt) for prompt in prompts()])

    alone = [logits_of(engine, [each], [after], chunk=1000)[0] for each, after in zip(prompts(), answers, strict=True)]

    assert torch.equal(torch.stack(logits_of(engine, prompts(), answers, chunk=1000)), torch.stack(alone))
    assert torch.equal(torch.stack(logits_of(engine, prompts(), answers, chunk=13)), torch.stack(alone))
    assert torch.equal(torch.stack(logits_of(engine, prompts(), answers, chunk=50, resumed=9)), torch.stack(alone))


def logits_of(
    engine: Any, asked: list[list[int]], answers: list[list[int]], *, chunk: int, resumed: int = 0
) -> list[torch.Tensor]:
    """Logits of the token after each whole answer; `resumed` of its tokens are known from the start."""
    scheduler = Scheduler(replace(engine.limits, batch_tokens_max=chunk))
    sequences = [sequence(prompt, output=said[:resumed]) for prompt, said in zip(asked, answers, strict=True)]
    for each in sequences:
        scheduler.add(each)
    found: dict[Sequence, torch.Tensor] = {}
    while scheduler.busy:
        batch = scheduler.next_batch()
        rows = dict(zip([row.sequence for row in batch.sampling], engine.logits(batch), strict=True))
        said = [Sampled(([*answers[sequences.index(each)], 0])[each.output_length]) for each in rows]
        for each, _ in scheduler.apply(batch, said):
            if each.output_length > TOKENS:
                found[each] = rows[each]
                scheduler.drop(each)
    return [found[each] for each in sequences]
