"""The options of the upstream engine."""

from typing import Any

import pytest

from shared.domain.errors import SettingsError
from shared.models_file.upstreams import Price
from workers.engines.upstream.options import UpstreamOptions
from workers.loading.options import validated


def options_of(**given: Any) -> UpstreamOptions:
    return validated("upstream", given, UpstreamOptions)


def test_each_upstream_has_what_is_said_of_all_and_its_own_wins() -> None:
    options = options_of(
        urls=["https://a/v1", {"url": "https://b/v1", "model": "other", "requests_per_minute": 5}],
        key="${env:KEY}",
        model="m",
    )

    first, second = options.targets
    assert (first.url, first.model, first.key, first.requests_per_minute) == ("https://a/v1", "m", "${env:KEY}", 0)
    assert (second.url, second.model, second.key, second.requests_per_minute) == (
        "https://b/v1",
        "other",
        "${env:KEY}",
        5,
    )


def test_the_price_of_all_holds_where_an_upstream_has_none() -> None:
    own = {"url": "https://b/v1", "price": {"input": 7}}
    dear, cheap = options_of(urls=["https://a/v1", own], price={"input": 2.5, "output": 10}).targets

    assert dear.price == Price(input=2.5, output=10)
    assert cheap.price == Price(input=7)


def test_one_url_needs_no_list() -> None:
    assert [each.url for each in options_of(urls="http://localhost:8000/v1/").targets] == ["http://localhost:8000/v1"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "urls"),
        ({"urls": []}, "urls"),
        ({"urls": ["localhost:8000"]}, "urls"),
        ({"urls": ["http://me:secret@host/v1"]}, "urls"),
        ({"urls": ["http://host/v1"], "key": "sk-secret"}, "key"),
        ({"urls": ["http://host/v1"], "provider": "nobody"}, "provider"),
        ({"urls": ["http://host/v1"], "requests_per_minute": -1}, "requests_per_minute"),
        ({"urls": ["http://host/v1"], "price": 5}, "price"),
        ({"urls": ["http://host/v1"], "price": {"input": -1}}, "price.input"),
        ({"urls": ["http://host/v1"], "resume": "exact"}, "resume"),
        ({"urls": ["http://host/v1"], "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_option_is_named_and_its_value_is_not_shown(given: Any, named: str) -> None:
    with pytest.raises(SettingsError, match=named) as wrong:
        options_of(**given)

    assert "secret" not in str(wrong.value)


def test_a_key_is_read_from_the_environment_and_a_missing_one_is_named() -> None:
    (target,) = options_of(urls="http://host/v1", key="${env:A_KEY}").targets

    assert target.secret({"A_KEY": "sk-secret"}) == "sk-secret"
    assert "sk-secret" not in repr(target)
    with pytest.raises(SettingsError, match="A_KEY is not set"):
        target.secret({})
