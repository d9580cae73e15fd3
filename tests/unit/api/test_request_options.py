"""Values that a person writes are parsed: shares of tenants, ages, rates."""

from typing import get_args

import click
import pytest
from fastapi import Request

from api.http.auth import Caller
from api.http.request_options import _moment, weights
from api.schemas.batch import BatchRequest
from api.serving.submission import BATCHED
from cli.click_types import Age, Rate
from shared.domain.errors import InvalidRequest, SettingsError
from shared.settings import load_settings


def test_shares_of_tenants_are_read() -> None:
    assert weights(load_settings(tenant_weights="key-1=4, anonymous=0.5")) == {"key-1": 4, "anonymous": 0.5}
    assert weights(load_settings()) == {}


@pytest.mark.parametrize("text", ["key-1", "key-1=", "key-1=much", "key-1=0", "key-1=-1"])
def test_a_bad_share_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_TENANT_WEIGHTS"):
        weights(load_settings(tenant_weights=text))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5d", 129_600)])
def test_an_age_is_in_seconds(text: str, seconds: float) -> None:
    assert Age().convert(text, None, None) == seconds


@pytest.mark.parametrize(("text", "rate"), [("5/s", 5), ("30/m", 0.5), ("0", 0)])
def test_a_rate_is_a_second(text: str, rate: float) -> None:
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("kind", [Age(), Rate()])
def test_other_amounts_are_refused(kind: click.ParamType[float]) -> None:
    with pytest.raises(click.BadParameter, match="yesterday"):
        kind.convert("yesterday", None, None)


def test_every_endpoint_that_a_batch_may_name_can_be_done() -> None:
    assert set(get_args(BatchRequest.model_fields["endpoint"].annotation)) == set(BATCHED)


def asked(**headers: str) -> Request:
    raw = [(f"x-penstock-{name.replace('_', '-')}".encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw, "state": {"caller": Caller("t", None)}}
    return Request(scope)


@pytest.mark.parametrize(
    ("text", "after_s"),
    [
        ("30m", 1800),
        ("1h30m", 5400),
        ("1000000600", 600),
        ("2001-09-09T01:46:50Z", 10),
        ("2001-09-09t03:46:50+02", 10),
    ],
)
def test_a_moment_is_a_time_or_a_duration(text: str, after_s: float) -> None:
    assert _moment(asked(not_before=text), "not-before", 1e9) == 1e9 + after_s


@pytest.mark.parametrize("text", ["soon", "forever", "-1", "2026-11-25T22:00:00", "8d", "99999999999", "2026-99-99"])
def test_any_other_moment_is_refused_by_the_name_of_its_header(text: str) -> None:
    with pytest.raises(InvalidRequest, match="x-penstock-not-before"):
        _moment(asked(not_before=text), "not-before", 1e9)
