"""Values that a person writes are parsed: shares of tenants, ages, rates."""

from typing import get_args

import click
import pytest

from api.http.request_options import weights
from api.schemas.batch import BatchRequest
from api.serving.submission import BATCHED
from cli.click_types import Age, Rate
from shared.domain.errors import SettingsError
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
