"""What the attempts to have one answer take from the quotas of upstreams, and what they give back."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from workers.engines.upstream.attempts import Attempts
from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy
from workers.engines.upstream.options import Target
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream


class Ledger:
    """Upstreams `a` and `b`, and the requests that were spent beside claims, by name."""

    def __init__(self, transport: Transport) -> None:
        self.spent: dict[str, int] = {}
        self.pauses: list[tuple[str, float, int]] = []
        self.a, self.b = (
            Upstream(
                Target.model_validate({"url": f"http://{name}/v1"}),
                transport,
                model="m",
                paused=lambda upstream, seconds, refused: self.pauses.append((upstream.target.shown, seconds, refused)),
                spent=self._spend,
            )
            for name in ("a", "b")
        )

    def _spend(self, upstream: Upstream, count: int) -> None:
        self.spent[upstream.target.shown] = self.spent.get(upstream.target.shown, 0) + count

    def attempts(self, taken_from: Upstream) -> Attempts:
        return Attempts([self.a, self.b], quota=taken_from.quota.name)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    transport = Transport(silence_s=0.5)
    yield Ledger(transport)
    await transport.close()


def refuse(upstream: Upstream, error: Any) -> None:
    with pytest.raises(type(error)), upstream.judged():
        raise error


async def test_the_upstream_that_the_job_was_taken_from_is_spent_by_the_claim_alone(ledger: Ledger) -> None:
    assert next(iter(ledger.attempts(ledger.b))) is ledger.b

    assert ledger.spent == {}


async def test_one_that_is_asked_beside_it_is_spent(ledger: Ledger) -> None:
    attempts = ledger.attempts(ledger.a)

    for upstream in attempts:
        attempts.failed(upstream, UpstreamBroken("broke"), begun=False)

    assert ledger.spent == {"b": 1}


async def test_what_was_taken_from_an_upstream_that_pauses_is_given_back(ledger: Ledger) -> None:
    refuse(ledger.a, UpstreamBusy("429", retry_after_s=60))

    asked = list(ledger.attempts(ledger.a))

    assert asked == [ledger.b]
    assert ledger.spent == {"a": -1, "b": 1}


async def test_what_was_taken_is_given_back_once_if_no_upstream_may_be_asked(ledger: Ledger) -> None:
    for upstream in (ledger.a, ledger.b):
        refuse(upstream, UpstreamBusy("429", retry_after_s=60))

    assert list(ledger.attempts(ledger.b)) == []

    assert ledger.spent == {"b": -1}


async def test_a_refusal_for_want_of_room_counts_as_not_sent(ledger: Ledger) -> None:
    refuse(ledger.a, UpstreamBusy("429", retry_after_s=60))

    assert ledger.pauses == [("a", 60, 1)]
