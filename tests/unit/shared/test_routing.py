"""A name stands for models, of which a job prefers some."""

import math

from shared.domain.routing import Candidate, Route, Routing, preference


def candidate(model: str, *, warm: bool = True, wait_s: float = 0.0, usable: bool = True) -> Candidate:
    return Candidate(model=model, warm=warm, wait_s=wait_s, usable=usable)


def test_among_warm_models_the_order_decides() -> None:
    assert preference([candidate("b", wait_s=5), candidate("a")], 30) == ["b", "a"]


def test_a_warm_model_comes_before_a_cold_one() -> None:
    assert preference([candidate("cold", warm=False), candidate("warm", wait_s=20)], 30) == ["warm", "cold"]


def test_without_a_warm_model_the_order_decides() -> None:
    cold = [candidate("b", warm=False, wait_s=20), candidate("a", warm=False, wait_s=1)]

    assert preference(cold, 30) == ["b", "a"]


def test_a_job_spills_when_its_wait_exceeds_the_bound() -> None:
    full = candidate("first", wait_s=30.1)

    assert preference([full, candidate("second", wait_s=29)], 30) == ["second", "first"]
    assert preference([full, candidate("second", wait_s=29)], math.inf) == ["first", "second"]


def test_a_job_spills_to_a_cold_model_too() -> None:
    assert preference([candidate("full", wait_s=99), candidate("cold", warm=False, wait_s=12)], 30)[0] == "cold"


def test_among_models_that_all_wait_too_long_the_shortest_wait_comes_first() -> None:
    waits = [candidate("a", wait_s=90), candidate("b", warm=False, wait_s=50), candidate("c", wait_s=70)]

    assert preference(waits, 30) == ["b", "c", "a"]


def test_a_model_that_is_not_usable_comes_last() -> None:
    assert preference([candidate("paused", usable=False), candidate("full", wait_s=99)], 30) == ["full", "paused"]


def test_a_name_stands_for_the_models_behind_its_aliases_each_once() -> None:
    routes = {
        "coder": Route(order=("gpt", "big", "qwen")),
        "gpt": Route(order=("qwen",)),
        "loop": Route(order=("other", "qwen")),
        "other": Route(order=("loop",)),
    }
    routing = Routing(routes=routes)

    assert routing.models_of("coder") == ("qwen", "big")
    assert routing.models_of("loop") == ("qwen",)
    assert routing.models_of("qwen") == ("qwen",)
