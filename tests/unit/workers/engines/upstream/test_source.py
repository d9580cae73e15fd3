"""The text upstream beside stand-ins that fail in every way: what is asked next, and what is never joined."""

import asyncio
from pathlib import Path

import pytest

from shared.domain.errors import EngineError, InvalidRequest
from shared.domain.events import FinishReason, Usage
from tests.unit.workers.engines.upstream.conftest import CHAT, SourceOf, asked, end_of, said_by, text_of
from tests.upstreams import Fault, openai_chat, saying, serving
from workers.engines.upstream.options import Target
from workers.engines.upstream.source import UpstreamSource
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.source import AnswerLost, Busy, Resume, Said, Text

WHOLE = "one two three four five"


async def test_an_answer_comes_as_it_is_said_with_the_usage_of_the_upstream(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as server:
        pieces = await said_by(source_of(server), asked())

    assert [piece.text for piece in pieces if isinstance(piece, Text)] == ["one", " two", " three", " four", " five"]
    assert end_of(pieces) == [FinishReason.STOP, Usage(prompt_tokens=7, completion_tokens=5)]
    assert server.bodies[0]["model"] == "m"


async def test_an_answer_costs_what_the_upstream_that_gave_it_takes(transport: Transport) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(status=503))
        targets = [
            Target.model_validate({"url": each.url, "price": {"input": price, "output": 2 * price}})
            for each, price in ((first, 1), (second, 100))
        ]
        upstreams = [Upstream(each, transport, model="m") for each in targets]
        source = UpstreamSource(upstreams, resume=Resume.RESTART, serves=CHAT)

        (*_, usage) = await said_by(source, asked())

    assert usage == Usage(prompt_tokens=7, completion_tokens=5, cost_micros=7 * 100 + 5 * 200)
    assert source.cost(Usage(prompt_tokens=7, completion_tokens=5)) == 7 + 10


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_an_upstream_without_room_is_passed_over(source_of: SourceOf, status: int) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(status=status, headers={"retry-after": "30"}))

        pieces = await said_by(source := source_of(first, second), asked())
        await said_by(source, asked())

    assert text_of(pieces) == WHOLE
    assert (len(first.received), len(second.received)) == (1, 2)  # and is left alone for as long as it asked for


async def test_a_job_goes_back_when_no_upstream_has_room(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(status=429, headers={"retry-after": "30"}))
        second.faults.append(Fault(status=429, headers={"retry-after-ms": "7500"}))

        with pytest.raises(Busy) as busy:
            await said_by(source_of(first, second), asked())

    assert busy.value.retry_after_s == 7.5


@pytest.mark.parametrize("fault", [Fault(status=502), Fault(after=0), Fault(after=0, stall=True)])
async def test_one_that_breaks_before_it_says_something_is_followed_by_the_next(
    source_of: SourceOf, fault: Fault
) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(fault)

        pieces = await said_by(source_of(first, second), asked())

    assert text_of(pieces) == WHOLE


async def test_one_that_nobody_serves_at_all_puts_the_job_back(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as gone:
        pass

    with pytest.raises(Busy):
        await said_by(source_of(gone), asked())


async def test_a_request_at_fault_is_refused_with_its_parameter_and_asked_nowhere_else(source_of: SourceOf) -> None:
    error = {"error": {"message": "temperature is too high", "type": "invalid_request_error", "param": "temperature"}}
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(status=400, body=error))

        with pytest.raises(InvalidRequest, match="temperature is too high") as refused:
            await said_by(source_of(first, second), asked())

    assert refused.value.param == "temperature"
    assert not second.received


async def test_a_key_that_is_refused_by_all_fails_the_job_without_being_shown(
    source_of: SourceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    async with serving(openai_chat()) as server:
        server.faults.append(Fault(status=401, body={"error": {"message": "wrong key sk-se...et"}}))

        with pytest.raises(EngineError, match="answers 401: it refuses the key") as failed:
            await said_by(source_of(server, key="${env:A_KEY}"), asked())

    assert server.received[0].headers["Authorization"] == "Bearer sk-secret"
    assert "sk-se" not in repr(failed.value) + str(failed.value)


async def test_restart_never_joins_two_answers(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(after=3))
        pieces = source_of(first, second).chat(asked())
        begun = [await anext(pieces) for _ in range(2)]

        with pytest.raises(AnswerLost):
            await anext(pieces)

    assert text_of(begun) == "one two"
    assert not second.received


async def test_prefill_continues_the_text_at_the_next_upstream(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(after=3))

        pieces = await said_by(source_of(first, second, resume=Resume.PREFILL, provider="vllm"), asked())

    assert text_of(pieces) == WHOLE
    assert second.bodies[0]["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert second.bodies[0]["continue_final_message"] is True
    assert second.bodies[0]["add_generation_prompt"] is False


async def test_prefill_continues_at_the_same_upstream_when_it_is_the_only_one(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as server:
        server.faults += [Fault(after=2), Fault(after=2)]

        pieces = await said_by(source_of(server, resume=Resume.PREFILL), asked())

    assert text_of(pieces) == WHOLE
    assert len(server.received) == 3


async def test_prefill_continues_what_an_earlier_worker_logged(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as server:
        source = source_of(server, resume=Resume.PREFILL)

        pieces = await said_by(source, asked(said=Said(text="one two three")))

    assert text_of(pieces) == " four five"


async def test_prefill_resumes_no_reasoning_and_no_call(source_of: SourceOf) -> None:
    async with serving(openai_chat(reasoning_content="hm")) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(after=2))

        with pytest.raises(AnswerLost):
            await said_by(source_of(first, second, resume=Resume.PREFILL), asked())

    assert not second.received


async def test_a_refused_continuation_is_a_lost_answer(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(after=3))
        second.faults.append(Fault(status=400, body={"error": {"message": "prefill is not supported"}}))

        with pytest.raises(AnswerLost, match="prefill is not supported"):
            await said_by(source_of(first, second, resume=Resume.PREFILL), asked())


async def test_an_error_in_the_stream_before_the_first_word_is_read_by_its_code(source_of: SourceOf) -> None:
    refusal = {"error": {"message": "too long", "code": 400}}
    async with serving(openai_chat()) as server:
        server.faults.append(Fault(error=refusal))

        with pytest.raises(InvalidRequest, match="too long"):
            await said_by(source_of(server), asked())


async def test_a_stream_that_ends_without_a_reason_was_cut(source_of: SourceOf) -> None:
    events = [{"choices": [{"index": 0, "delta": {"content": "half an ans"}}]}]
    async with serving(saying(events)) as server:
        with pytest.raises(AnswerLost):
            await said_by(source_of(server), asked())


async def test_five_failures_open_the_breaker_and_then_nothing_is_asked(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as server:
        server.faults += [Fault(status=502)] * 5
        source = source_of(server)

        for _ in range(5):
            with pytest.raises(Busy):
                await said_by(source, asked())
        with pytest.raises(Busy) as busy:
            await said_by(source, asked())

    assert len(server.received) == 5
    assert 1 < busy.value.retry_after_s <= 2


async def test_who_leaves_closes_the_connection(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as server:
        server.step_s = 0.02
        pieces = source_of(server).chat(asked())
        await anext(pieces)

        await pieces.aclose()  # type: ignore[attr-defined]

        assert await asyncio.to_thread(server.left.wait, 5)
    assert server.running == 0


async def test_an_answer_that_is_repeated_begins_again_where_its_job_does(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        first.faults.append(Fault(after=3))

        with pytest.raises(Busy):
            await said_by(source_of(first, second, resume=Resume.REPEAT), asked())
        again = await said_by(source_of(second, resume=Resume.REPEAT), asked(said=Said(text="one two")))

    assert text_of(again) == WHOLE  # the run skips what was said


async def test_the_upstream_that_the_job_was_taken_from_is_asked_first(source_of: SourceOf) -> None:
    async with serving(openai_chat()) as first, serving(openai_chat()) as second:
        source = source_of(first, second)
        mine = source._upstreams[1].quota.name

        await said_by(source, asked(quota=mine))

    assert (len(first.received), len(second.received)) == (0, 1)


async def test_a_netrc_entry_for_the_upstream_leaves_its_key_alone(
    source_of: SourceOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("UPSTREAM_KEY", "k")
    async with serving(openai_chat()) as server:
        assert text_of(await said_by(source_of(server, key="${env:UPSTREAM_KEY}"), asked())) == WHOLE

    assert server.received[0].headers["Authorization"] == "Bearer k"


async def test_an_upstream_is_asked_by_the_proxy_that_the_environment_names(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(openai_chat()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://someone:secret@").removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        targets = [Target.model_validate({"url": url}) for url in ("http://a.invalid/v1", "http://127.0.0.1:9/v1")]
        upstreams = [Upstream(target, transport, model="m") for target in targets]
        proxied, direct = [UpstreamSource([each], resume=Resume.RESTART, serves=CHAT) for each in upstreams]

        assert text_of(await said_by(proxied, asked())) == WHOLE
        with pytest.raises(Busy):
            await said_by(direct, asked())

    assert proxy.received[0].headers["Host"] == "a.invalid"
    assert proxy.received[0].headers["Proxy-Authorization"] == "Basic c29tZW9uZTpzZWNyZXQ="  # someone:secret
