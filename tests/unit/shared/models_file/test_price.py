"""An upstream's tokens have a cost."""

import pytest
from pydantic import ValidationError

from shared.domain.events import Usage
from shared.models_file.upstreams import Price


def usage(prompt: int, completion: int = 0, cached: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def test_a_prompt_its_cached_part_and_the_answer_have_their_own_prices() -> None:
    price = Price(input=2.5, cached_input=1.25, output=10)

    assert price.cost_micros(usage(1_000_000)) == 2_500_000
    assert price.cost_micros(usage(100, 20, cached=40)) == 60 * 2.5 + 40 * 1.25 + 20 * 10


def test_a_cached_part_without_a_price_costs_what_the_rest_does() -> None:
    assert Price(input=3, output=1).cost_micros(usage(10, cached=4)) == 30


def test_a_cached_part_is_free_if_its_price_is_zero() -> None:
    assert Price(input=3, cached_input=0).cost_micros(usage(10, 5, cached=4)) == 18


@pytest.mark.parametrize(("tokens", "micros"), [(0, 0), (1, 1), (1000, 150), (1001, 151), (3_000_000, 450_000)])
def test_a_cost_is_exact_and_rounded_up_to_millionths(tokens: int, micros: int) -> None:
    assert Price(input=0.15).cost_micros(usage(tokens)) == micros


def test_more_cached_tokens_than_the_prompt_has_give_nothing_back() -> None:
    assert Price(input=2, cached_input=1).cost_micros(usage(10, cached=1000)) == 10


@pytest.mark.parametrize(
    "wrong", [{}, {"input": -1}, {"input": float("inf")}, {"input": float("nan")}, {"input": 1, "outputs": 2}]
)
def test_a_wrong_price_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(wrong)
