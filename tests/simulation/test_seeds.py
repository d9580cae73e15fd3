"""Two thousand histories. A failure names its seed, and `one_history(seed)` is the same again."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from shared.events import Cancelled, Completed, Delta, Finished, Started
from shared.lifecycle import State
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import World, pages
from workers.engine.scripted import ScriptedTokenizer, scripted_token
from workers.sequence import Choosing, Sequence

SEEDS = 2000
CHUNK = 100
STATES = {Completed: State.FINISHED, Cancelled: State.CANCELED}


def simulated(work: Callable[[], Any]) -> Any:
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


async def one_history(seed: int) -> None:
    world = World(seed)
    try:
        await world.live()
        judge(world)
    finally:
        await world.end()


def judge(world: World) -> None:
    for client, page in zip(world.clients, pages(world), strict=True):
        assert isinstance(client.events[0], Started | Finished)
        assert [event.seq for event in client.events] == list(range(len(client.events)))
        assert sum(isinstance(event, Finished) for event in client.events) == 1
        assert list(page.events) == client.events
        outcome = client.events[-1].outcome  # type: ignore[union-attr]
        assert page.state is STATES[type(outcome)]
        for choice in range(client.job.sampling.n):
            said = [
                token
                for event in client.events
                if isinstance(event, Delta) and event.choice == choice
                for token in event.token_ids
            ]
            right = answer(client.job.request["messages"][0]["content"], client.job.sampling.max_tokens or 0)
            assert said == right[: len(said)]
            assert len(said) == len(right) or isinstance(outcome, Cancelled)


@functools.cache
def answer(content: str, tokens: int) -> list[int]:
    prompt = ScriptedTokenizer().chat({"messages": [{"role": "user", "content": content}]}).ids
    sequence = Sequence(job_id="", choice=0, prompt=prompt, choosing=Choosing(seed=0, temperature=0, top_p=1, top_k=0))
    return [scripted_token(sequence, position) for position in range(tokens)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_client_gets_the_right_answer_in_every_history(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    for seed in range(first, first + CHUNK):
        try:
            simulated(functools.partial(one_history, seed))
        except BaseException as error:
            error.add_note(f"the history of seed {seed}")
            raise


def test_a_seed_is_one_history() -> None:
    async def events(seed: int) -> list[Any]:
        world = World(seed)
        try:
            await world.live()
            return [client.events for client in world.clients]
        finally:
            await world.end()

    assert simulated(lambda: events(7)) == simulated(lambda: events(7))
