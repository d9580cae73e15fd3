"""The operator's server moderates inputs, within bounds. A missing verdict opens or closes, as the setting says."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.serving.moderation import Moderation, require_moderation
from shared.domain.errors import (
    InputFlagged,
    InvalidRequest,
    ModerationUnavailable,
    NotFound,
    NoVerdict,
    SettingsError,
)
from shared.settings import load_settings
from tests.upstreams import Fault, StandIn, serving


def verdict(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"]
    results = [{"flagged": "bad" in text, "categories": {"hate": "bad" in text, "other": False}} for text in texts]
    return {"id": "modr-1", "model": "m", "results": results}


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with serving(StandIn({}, answers={"/moderations": verdict})) as stand_in:
        yield stand_in


@pytest.fixture
async def moderation(server: StandIn, request: pytest.FixtureRequest) -> AsyncIterator[Moderation]:
    mode = getattr(request, "param", "closed")
    settings = {"moderation_key": "secret", "moderated_inputs": mode, "moderation_timeout_s": 0.5}
    made = Moderation(load_settings(moderation_url=f"{server.url}/moderations", **settings))
    yield made
    await made.close()


@pytest.mark.parametrize("moderation", ["open", "closed"], indirect=True)
async def test_a_flagged_text_is_refused_with_its_categories(moderation: Moderation, server: StandIn) -> None:
    await moderation.require_allowed(["good", " "], param="messages")
    with pytest.raises(InputFlagged, match="hate") as refused:
        await moderation.require_allowed(["good", "bad"], param="messages")

    assert refused.value.param == "messages"
    assert [body["input"] for body in server.bodies] == [["good"], ["good", "bad"]]
    assert server.received[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("moderation", ["off"], indirect=True)
async def test_nothing_is_asked_unless_the_setting_says_so(moderation: Moderation, server: StandIn) -> None:
    await moderation.require_allowed(["bad"], param="messages")

    assert server.received == []


NO_VERDICT = [
    Fault(status=500),
    Fault(status=401, body={"error": {"message": "wrong key"}}),
    Fault(status=302, headers={"location": "http://127.0.0.1:1/"}),
    Fault(status=200, body={"results": "?"}),
    Fault(status=400, body={"error": {"message": "too long"}}),
]


@pytest.mark.parametrize("fault", NO_VERDICT, ids=lambda fault: str(fault.status))
@pytest.mark.parametrize("moderation", ["open", "closed"], indirect=True)
async def test_a_missing_verdict_opens_or_closes(moderation: Moderation, server: StandIn, fault: Fault) -> None:
    server.faults.extend([fault, fault])
    if moderation._mode == "open":
        await moderation.require_allowed(["good"], param="messages")
    else:
        with pytest.raises(ModerationUnavailable) as missing:
            await moderation.require_allowed(["good"], param="messages")
        assert isinstance(missing.value, NoVerdict) == (fault.status == 400), "only then it is in vain to ask again"

    with pytest.raises(InvalidRequest if fault.status == 400 else ModerationUnavailable):
        await moderation.ask({"input": ["x"]})


@pytest.mark.parametrize("results", [[], ["fine"]], ids=str)
async def test_results_without_a_verdict_let_nothing_pass(
    moderation: Moderation, server: StandIn, results: list[Any]
) -> None:
    server.faults.append(Fault(status=200, body={"results": results}))

    with pytest.raises(NoVerdict):
        await moderation.require_allowed(["bad"], param="messages")


async def test_a_server_that_is_away_or_too_long_counts_as_silent() -> None:
    async with serving(StandIn({}, answers={"/moderations": lambda body: {"results": ["x" * 5_000_000]}})) as server:
        url = f"{server.url}/moderations"
        made = Moderation(load_settings(moderation_url=url, moderated_inputs="closed"))
        with pytest.raises(ModerationUnavailable):
            await made.ask({"input": "x"})
    with pytest.raises(ModerationUnavailable):
        await made.ask({"input": "x"})
    await made.close()


async def test_token_ids_pass_only_where_a_verdict_may_be_missing(moderation: Moderation) -> None:
    with pytest.raises(InvalidRequest, match="token ids"):
        await moderation.require_texts(["good", [1, 2]], param="prompt")


async def test_without_a_server_there_is_no_moderation() -> None:
    made = Moderation(load_settings())
    with pytest.raises(NotFound, match="PENSTOCK_MODERATION_URL"):
        await made.ask({"input": "x"})
    await made.close()


@pytest.mark.parametrize("wrong", [{"moderated_inputs": "open"}, {"moderation_url": "file:///etc/passwd"}], ids=str)
def test_settings_that_contradict_each_other_stop_the_start(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_MODERAT"):
        require_moderation(load_settings(**wrong))
