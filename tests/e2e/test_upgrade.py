"""A fleet goes from the last release to this one and back, under load."""

from pathlib import Path

import pytest

from bench.chaos.__main__ import ROOT
from bench.chaos.rolling import rolling


@pytest.mark.long
async def test_a_fleet_is_upgraded_and_taken_back_without_a_lost_token(tmp_path: Path, release_before: Path) -> None:
    verdict = await rolling(tmp_path / "site", [release_before, ROOT, release_before], seed=7)

    assert verdict.violations == {}
    assert verdict.stories > 50
    assert len(verdict.pauses["rolled"]) > 10
