"""Runs two thousand histories. A failure names its seed; `python -m tests.simulation SEED` repeats it."""

from typing import Any

import pytest

from tests.simulation.histories import run, simulated
from tests.simulation.world import World

SEEDS = 2000
CHUNK = 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_client_gets_the_right_answer_in_every_history(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    for seed in range(first, first + CHUNK):
        assert run(seed) == [], f"the history of seed {seed}"


def test_a_seed_is_one_history() -> None:
    async def events(seed: int) -> list[Any]:
        world = World(seed)
        try:
            await world.live()
            return [client.events for client in world.clients]
        finally:
            await world.end()

    assert simulated(lambda: events(7)) == simulated(lambda: events(7))
