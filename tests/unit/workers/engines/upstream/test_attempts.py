"""The attempts to have one answer take requests from the quotas of upstreams, and give some back."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.queue.protocols import Quota
from workers.engines.upstream.attempts import Attempts
from workers.engines.upstream.breaker import FAILURES, FIRST_PAUSE_S
from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy
from workers.engines.upstream.options import Target
from workers.engines.upstream.reports import RedisReports, Reports
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream


class Ledger(Reports):
    """Upstreams `a` and `b`, and the requests that were spent beside claims, by name."""

    def __init__(self, transport: Transport) -> None:
        self.spent: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.a, self.b = (
            Upstream(
                Target.model_validate({"url": f"http://{name}/v1"}),
                transport,
                model="m",
                reports=self,
            )
            for name in ("a", "b")
        )

    def spend(self, quota: Quota, count: int) -> None:
        name = self._name(quota)
        self.spent[name] = self.spent.get(name, 0) + count

    def pause(self, quota: Quota, seconds: float, *, refused: int) -> None:
        self.refused[self._name(quota)] = refused

    def _name(self, quota: Quota) -> str:
        return next(each.target.shown for each in (self.a, self.b) if each.quota == quota)

    def attempts(self, taken_from: Upstream) -> Attempts:
        return Attempts([self.a, self.b], quota=taken_from.quota.name)


@pytest.fixture
async def ledger(transport: Transport) -> Ledger:
    return Ledger(transport)


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

    assert ledger.refused == {"a": 1}


class Heard(Reports):
    """Counts the reports of one upstream. Redis answers a failure by opening the breaker for `opens_s`, if set."""

    def __init__(self, opens_s: float = 0.0) -> None:
        self.failures = self.answers = 0
        self._opens_s = opens_s

    def fail(self, quota: Quota, opened: Callable[[float], None]) -> None:
        self.failures += 1
        if self._opens_s:
            opened(self._opens_s)

    def answer(self, quota: Quota) -> None:
        self.answers += 1


def upstream_with(transport: Transport, reports: Reports) -> Upstream:
    return Upstream(Target.model_validate({"url": "http://a/v1"}), transport, model="m", reports=reports)


async def test_a_breaker_that_others_have_opened_holds_here_too(transport: Transport) -> None:
    heard = Heard(opens_s=60)
    upstream = upstream_with(transport, heard)

    refuse(upstream, UpstreamBroken("broke"))

    assert heard.failures == 1
    assert 59 < upstream.open_for <= 60


async def test_an_upstream_that_answers_says_so(transport: Transport) -> None:
    heard = Heard()

    with upstream_with(transport, heard).judged():
        pass

    assert heard.answers == 1


async def test_without_redis_the_breaker_here_opens_alone(transport: Transport) -> None:
    reports = RedisReports("redis://127.0.0.1:9")
    upstream = upstream_with(transport, reports)

    for _ in range(FAILURES):
        refuse(upstream, UpstreamBroken("broke"))
    open_for = upstream.open_for
    await reports.close()

    assert 1 < open_for <= FIRST_PAUSE_S
