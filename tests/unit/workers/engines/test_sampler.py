"""Tokens are sampled with the probabilities of transformers' processors, each row as if alone."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shared.domain.errors import EngineError
from workers.engines.llamacpp import sampler as without_torch
from workers.engines.native.causal import sampler as with_torch
from workers.engines.native.causal.sampler import CANDIDATES
from workers.engines.uniform import uniform
from workers.scheduling.sequence import NOTHING, Sampled, SamplingParams, Sequence

DRAWS = 4000
Choose = Callable[[torch.Tensor, list[Sequence]], list[Sampled]]


@pytest.fixture(params=["torch", "numpy"])
def choose(request: pytest.FixtureRequest) -> Choose:
    """Each sampler must do what the other does."""
    if request.param == "torch":
        return with_torch.choose
    return lambda logits, sequences: without_torch.choose(logits.numpy(), sequences)


def how(**given: Any) -> SamplingParams:
    return SamplingParams(**{"seed": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | given)


def sequence(sampling: SamplingParams, prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = ()) -> Sequence:
    return Sequence(job_id="j", choice=0, prompt=prompt, sampling=sampling, output=output)


def random_logits(rows: int, vocabulary: int, seed: int = 3, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def frequencies(choose: Choose, logits: torch.Tensor, **given: Any) -> torch.Tensor:
    """The frequency of each token, over many seeds."""
    rows = logits.expand(DRAWS, -1)
    drawn = choose(rows, [sequence(how(seed=seed, **given)) for seed in range(DRAWS)])
    return torch.bincount(torch.tensor([each.token for each in drawn]), minlength=logits.shape[-1]) / DRAWS


@pytest.mark.parametrize(
    ("given", "processors"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.5, "top_k": 8, "top_p": 0.8},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(8), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_draws_follow_the_distribution_of_transformers(
    choose: Choose, given: dict[str, Any], processors: list[Any]
) -> None:
    logits = random_logits(1, 12)
    expected = logits
    for processor in processors:
        expected = processor(torch.tensor([[1]]), expected)
    wanted = torch.softmax(expected, -1)[0]

    seen = frequencies(choose, logits, **given)

    possible = wanted > 0
    assert not seen[~possible].any(), "a token came that cannot"
    chi2 = (DRAWS * (seen - wanted)[possible] ** 2 / wanted[possible]).sum().item()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_greedy_takes_the_best(choose: Choose) -> None:
    logits = random_logits(5, 100)

    drawn = choose(logits, [sequence(how(temperature=0.0, seed=n)) for n in range(5)])

    assert [each.token for each in drawn] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers(choose: Choose, penalty: float) -> None:
    rng = random.Random(1)
    logits = random_logits(8, 50)
    known = [tuple(rng.choices(range(50), k=30)) for _ in range(8)]
    rows = [sequence(how(temperature=0.0, repetition_penalty=penalty), ids[:20], ids[20:]) for ids in known]

    processor = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = [processor(torch.tensor([ids]), logits[row : row + 1]).argmax().item() for row, ids in enumerate(known)]

    assert [each.token for each in choose(logits, rows)] == wanted


def test_presence_and_frequency_count_the_output_alone(choose: Choose) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])

    def best(prompt: tuple[int, ...], output: tuple[int, ...], **given: Any) -> int:
        return choose(logits, [sequence(how(temperature=0.0, **given), prompt, output)])[0].token

    assert best((), (0,)) == 0
    assert best((), (0,), presence_penalty=1.5) == 1
    assert best((), (0, 0, 0), presence_penalty=0.9) == 0
    assert best((0,), (), presence_penalty=1.5) == 0
    assert best((), (0, 0, 1), frequency_penalty=0.8) == 2
    assert best((0, 0), (), frequency_penalty=0.8) == 0


def test_biases_and_bans(choose: Choose) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])

    def best(output: tuple[int, ...] = (), **given: Any) -> int:
        return choose(logits, [sequence(how(temperature=0.0, **given), (), output)])[0].token

    assert best(logit_bias=((3, 9.0),)) == 3
    assert best(logit_bias=((0, -100.0),)) == 1
    assert best((1,), min_tokens=2, banned=frozenset({0})) == 1
    assert best((1, 1), min_tokens=2, banned=frozenset({0})) == 0
    assert best(allowed_token_ids=(2, 3)) == 2
    assert best(allowed_token_ids=(0, 3), logit_bias=((3, 9.0),)) == 3
    assert best(bad_words=((0,),)) == 1
    assert best((1,), bad_words=((1, 0), (2, 1))) == 1
    assert best((2,), bad_words=((1, 0),)) == 0
    assert best((1,), bad_words=((1, 1, 0),)) == 0  # longer than the output
    assert best(bad_words=((0,),), allowed_token_ids=(0,)) == NOTHING


KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 3.0},  # these need more than the candidates
    {"top_k": 40},
    {"top_k": CANDIDATES + 50},
    {"min_p": 0.02},
    {"repetition_penalty": 1.2, "top_p": 0.8},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": ((7, 5.0), (9, -100.0))},
    {"min_tokens": 50, "banned": frozenset({2, 3})},
    {"logprobs": 5},
    {"allowed_token_ids": (5, 70, 900), "top_p": 0.7},
    {"bad_words": ((7,), (1, 2))},
]


def test_a_row_gets_the_same_token_whatever_shares_its_batch(choose: Choose) -> None:
    rng = random.Random(5)
    rows = [
        sequence(
            how(seed=seed, **KINDS[seed % len(KINDS)]),
            tuple(rng.choices(range(5000), k=rng.randint(1, 40))),
            tuple(rng.choices(range(5000), k=rng.randint(0, 40))),
        )
        for seed in range(48)
    ]
    logits = random_logits(48, 5000)

    together = choose(logits, rows)

    assert together == [choose(logits[at : at + 1], [row])[0] for at, row in enumerate(rows)]
    order = rng.sample(range(48), 48)
    assert [together[at] for at in order] == choose(logits[order], [rows[at] for at in order])


def test_a_flat_distribution_reaches_tokens_beyond_the_candidates(choose: Choose) -> None:
    logits = torch.zeros(1, 3 * CANDIDATES).expand(300, -1)

    drawn = choose(logits, [sequence(how(seed=seed, top_p=0.95)) for seed in range(300)])

    assert len({each.token for each in drawn}) > 250
    assert max(each.token for each in drawn) > 2 * CANDIDATES


def test_logprobs_are_the_models_own_before_anything_changes_them(choose: Choose) -> None:
    logits = random_logits(2, 30)
    asked = how(temperature=0.0, logprobs=4, logit_bias=((17, 50.0),))

    first, second = choose(logits, [sequence(asked), sequence(how(temperature=0.0))])

    own = torch.log_softmax(logits[0], -1)
    assert first.token == 17
    assert first.logprob == pytest.approx(own[17].item(), abs=1e-5)
    assert [token for token, _ in first.top] == own.topk(4).indices.tolist()
    assert [logprob for _, logprob in first.top] == pytest.approx(own.topk(4).values.tolist(), abs=1e-5)
    assert (second.logprob, second.top) == (0.0, ())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(choose: Choose, bad: float) -> None:
    logits = random_logits(2, 10)
    logits[1, 3] = bad

    with pytest.raises(EngineError, match="NaN or infinite"):
        choose(logits, [sequence(how()), sequence(how())])


def test_random_numbers_depend_on_seed_choice_and_position_alone() -> None:
    numbers = {uniform(seed, choice, position) for seed in range(-5, 5) for choice in range(5) for position in range(5)}

    assert len(numbers) == 250
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(2**63 - 1, 0, 0) != uniform(-(2**63), 0, 0)


def test_both_samplers_choose_the_same_tokens() -> None:
    rng = random.Random(9)
    rows = [
        sequence(how(seed=seed, **KINDS[seed % len(KINDS)]), tuple(rng.choices(range(5000), k=9)), (4, 4, 5))
        for seed in range(96)
    ]
    logits = random_logits(96, 5000)

    ours, theirs = without_torch.choose(logits.numpy(), rows), with_torch.choose(logits, rows)

    assert [each.token for each in ours] == [each.token for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
