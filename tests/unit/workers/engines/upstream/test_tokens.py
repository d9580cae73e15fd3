"""Token upstreams: what goes out, what comes back, and where an answer goes on."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from shared.domain.errors import InvalidRequest
from tests.upstreams import Fault, StandIn, serving, token_server
from workers.engines.upstream.chat_body import salted
from workers.engines.upstream.errors import UpstreamBroken, UpstreamRefused
from workers.engines.upstream.options import Target
from workers.engines.upstream.token_protocols import (
    TOKEN_PROTOCOLS,
    Form,
    TokenRequest,
    completions_body,
    llamacpp_body,
    read_completions,
    read_llamacpp,
)
from workers.engines.upstream.token_source import TokenSource
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.scheduling.sequence import Sampled, SamplingParams
from workers.source import AnswerLost, Busy

END = 2
EVERYTHING = SamplingParams(
    seed=2**40 + 7,
    temperature=0.5,
    top_p=0.9,
    top_k=4,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    logit_bias=((5, -1.0),),
    min_tokens=3,
    banned=frozenset({END}),
    logprobs=2,
)
SCHEMA = Form(lark="start: %json {}", json_schema='{"type":"array"}', param="response_format")
CALLS = Form(lark="start: calls", json_schema=None, param="tool_choice")


def request_of(ids: list[int], *, sampling: SamplingParams | None = None, form: Form | None = None) -> TokenRequest:
    plain = SamplingParams(seed=1, temperature=0, top_p=1, top_k=0, seeded=False)
    return TokenRequest(ids=ids, tokens_max=50, sampling=sampling or plain, form=form, salt="t/")


def test_vllm_is_told_everything_but_stop_strings() -> None:
    assert completions_body(request_of([7, 8], sampling=EVERYTHING, form=SCHEMA), "m") == {
        "model": "m",
        "prompt": [7, 8],
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "stop_token_ids": [END],
        "skip_special_tokens": False,
        "min_tokens": 3,
        "logit_bias": {"5": -1.0},
        "seed": 2**40 + 7,
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
        "cache_salt": salted("t/"),
    }


def test_llamacpp_is_told_the_same_in_its_words() -> None:
    assert llamacpp_body(request_of([7, 8], sampling=EVERYTHING, form=SCHEMA), "m") == {
        "prompt": [7, 8],
        "stream": True,
        "return_tokens": True,
        "n_predict": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "repeat_last_n": 52,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "cache_prompt": True,
        "ignore_eos": False,
        "logit_bias": [[5, -1.0]],
        "seed": 7 + 2**40 % 2**32,
        "n_probs": 2,
    }


@pytest.mark.parametrize(
    ("protocol", "schema", "calls"),
    [
        (
            "completions",
            {"structured_outputs": {"grammar": "start: %json {}"}},
            {"structured_outputs": {"grammar": "start: calls"}},
        ),
        ("sglang", {"json_schema": '{"type":"array"}'}, None),
        ("llamacpp", {"json_schema": {"type": "array"}}, None),
    ],
)
def test_a_form_is_told_as_the_server_knows_it_or_refused_by_name(protocol: str, schema: Any, calls: Any) -> None:
    hold = TOKEN_PROTOCOLS[protocol].hold

    assert hold(SCHEMA) == schema
    if calls:
        assert hold(CALLS) == calls
    else:
        with pytest.raises(InvalidRequest) as refused:
            hold(CALLS)
        assert refused.value.param == "tool_choice"


async def test_the_form_goes_out_with_the_request(transport: Transport) -> None:
    async with serving(token_server(three)) as server:
        upstream = Upstream(Target.model_validate({"url": server.url}), transport, model="m")
        async for _ in upstream.tokens(TOKEN_PROTOCOLS["completions"], request_of([1], form=CALLS)):
            pass

    assert server.bodies[0]["structured_outputs"] == {"grammar": "start: calls"}


@pytest.mark.parametrize("body", [completions_body, llamacpp_body])
def test_a_server_does_not_end_an_answer_that_ignores_its_end(body: Any) -> None:
    assert body(request_of([7])._replace(ignore_eos=True), "m")["ignore_eos"] is True


def test_vllm_s_log_probabilities_are_by_token_id() -> None:
    rows = {
        "tokens": ["token_id:5"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -2}],
    }
    chunk = {"choices": [{"index": 0, "text": "x", "token_ids": [5], "logprobs": rows, "finish_reason": "length"}]}

    assert read_completions(orjson.dumps(chunk)) == ([Sampled(5, -0.5, ((5, -0.5), (9, -2)))], "length", 0)


def test_llamacpp_s_log_probabilities_are_too() -> None:
    row = {"id": 5, "logprob": -0.5, "top_logprobs": [{"id": 5, "logprob": -0.5}, {"id": 9, "logprob": -2}]}
    chunk = {"content": "x", "tokens": [5], "stop": False, "completion_probabilities": [row]}

    assert read_llamacpp(orjson.dumps(chunk)) == ([Sampled(5, -0.5, ((5, -0.5), (9, -2)))], "", 0)


@pytest.mark.parametrize(("kind", "end"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_llamacpp_says_why_it_ends(kind: str, end: str) -> None:
    assert read_llamacpp(orjson.dumps({"content": "", "tokens": [], "stop": True, "stop_type": kind})) == ([], end, 0)


def test_a_server_that_gives_no_ids_is_no_token_upstream() -> None:
    with pytest.raises(UpstreamBroken, match="return_token_ids is not understood"):
        read_completions(b'{"choices": [{"index": 0, "text": "x", "finish_reason": null}]}')


def test_an_error_in_the_stream_is_one() -> None:
    with pytest.raises(UpstreamRefused):
        read_llamacpp(b'{"error": {"code": 400, "message": "too long", "type": "invalid_request_error"}}')


def three(prompt: Any) -> Iterator[int]:
    """The tokens 10, 11, 12 behind whatever of them is there."""
    yield from range(max(prompt[-1] + 1, 10), 13)


def llamacpp_server() -> StandIn:
    """llama.cpp's `/completion`, which gives no token for the end of an answer."""

    def events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for token in three(body["prompt"]):
            yield {"content": "?", "tokens": [token], "stop": False}
        yield {"content": "", "tokens": [], "stop": True, "stop_type": "eos"}

    return StandIn({"/completion": events}, done=False)


SERVERS: dict[str, Callable[[], StandIn]] = {
    "completions": lambda: token_server(three),
    "sglang": lambda: token_server(three, owned_by="sglang"),
    "llamacpp": llamacpp_server,
}


async def said_by(transport: Transport, protocol: str, *servers: StandIn) -> list[int]:
    """The tokens of an answer to the prompt 1."""
    upstreams = [Upstream(Target.model_validate({"url": server.url}), transport, model="m") for server in servers]
    source = TokenSource(upstreams, TOKEN_PROTOCOLS[protocol], end=END)
    ids = [1]
    async for sampled in source.tokens(lambda: request_of(list(ids))):
        ids.append(sampled.token)
    return ids[1:]


@pytest.mark.parametrize("protocol", TOKEN_PROTOCOLS)
async def test_an_answer_has_its_end_even_where_the_server_gives_none(transport: Transport, protocol: str) -> None:
    make = SERVERS[protocol]
    async with serving(make()) as server:
        assert await said_by(transport, protocol, server) == [10, 11, 12, END]


@pytest.mark.parametrize("protocol", TOKEN_PROTOCOLS)
async def test_the_next_upstream_continues_at_the_next_token(transport: Transport, protocol: str) -> None:
    make = SERVERS[protocol]
    async with serving(make()) as first, serving(make()) as second:
        first.faults.append(Fault(after=2))

        assert await said_by(transport, protocol, first, second) == [10, 11, 12, END]

    assert second.bodies[0]["prompt"] == [1, 10, 11]


async def test_the_upstream_that_the_job_was_taken_from_is_asked_for_tokens_first(transport: Transport) -> None:
    async with serving(token_server(three)) as first, serving(token_server(three)) as second:
        upstreams = [
            Upstream(Target.model_validate({"url": each.url}), transport, model="m") for each in (first, second)
        ]
        source = TokenSource(upstreams, TOKEN_PROTOCOLS["completions"], end=END)

        async for _ in source.tokens(lambda: request_of([1]), quota=upstreams[1].quota.name):
            pass

    assert (len(first.received), len(second.received)) == (0, 1)


async def test_a_busy_upstream_puts_the_job_back(transport: Transport) -> None:
    async with serving(token_server(three)) as server:
        server.faults.append(Fault(status=503, headers={"retry-after": "2"}))

        with pytest.raises(Busy) as busy:
            await said_by(transport, "completions", server)

    assert busy.value.retry_after_s == 2


async def test_a_refused_continuation_is_lost(transport: Transport) -> None:
    async with serving(token_server(three)) as first, serving(token_server(three)) as second:
        first.faults.append(Fault(after=2))
        second.faults.append(Fault(status=400, body={"error": {"message": "no"}}))

        with pytest.raises(AnswerLost):
            await said_by(transport, "completions", first, second)


def server_that_loses_ids(answer: list[int], *, lost: set[int]) -> StandIn:
    """llama.cpp's server, whose stream gives the ids of `answer` but for the `lost` ones, and END behind them."""

    def rest(body: Any) -> list[int]:
        before = set(body["prompt"])
        return [token for token in [*answer, END] if token not in before][: body["n_predict"]]

    def events(body: Any) -> Iterator[dict[str, Any]]:
        made = 0
        for made, token in enumerate(rest(body), 1):
            if token not in lost:
                yield {"content": "?", "tokens": [token], "stop": False, "tokens_predicted": made}
        kind = "eos" if made < body["n_predict"] else "limit"
        yield {"content": "", "tokens": [], "stop": True, "stop_type": kind, "tokens_predicted": made}

    def whole(body: Any) -> dict[str, Any]:
        tokens = rest(body)
        kind = "eos" if END in tokens else "limit"
        return {"tokens": tokens, "stop": True, "stop_type": kind, "tokens_predicted": len(tokens)}

    return StandIn({"/completion": events}, answers={"/completion": whole}, done=False)


@pytest.mark.parametrize("lost", [{11}, {11, 12}, {13}, {10, 12, 13}], ids=str)
async def test_ids_that_llamacpp_s_stream_lacks_are_asked_for(transport: Transport, lost: set[int]) -> None:
    async with serving(server_that_loses_ids([10, 11, 12, 13], lost=lost)) as server:
        assert (await said_by(transport, "llamacpp", server))[:5] == [10, 11, 12, 13, END]


async def test_an_answer_in_a_form_comes_whole_where_a_stream_lacks_ids(transport: Transport) -> None:
    async with serving(server_that_loses_ids([10, 11, 12], lost={11})) as server:
        upstream = Upstream(Target.model_validate({"url": server.url}), transport, model="m")
        asked = request_of([1], form=SCHEMA)
        chunks = [chunk async for chunk in upstream.tokens(TOKEN_PROTOCOLS["llamacpp"], asked)]

    assert [sampled.token for chunk in chunks for sampled in chunk.tokens] == [10, 11, 12, END]
    assert [body["stream"] for body in server.bodies] == [False]
