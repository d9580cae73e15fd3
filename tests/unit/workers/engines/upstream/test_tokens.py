"""Token upstreams: what goes out, what comes back, and where an answer goes on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
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
    TokenProtocol,
    TokenRequest,
    completions_body,
    generate_body,
    likeliest,
    llamacpp_body,
    read_completions,
    read_generate,
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


def test_vllm_s_generate_is_told_the_same_among_its_sampling_params() -> None:
    same = completions_body(request_of([7, 8], sampling=EVERYTHING), "m")
    own = ("model", "prompt", "stream", "return_token_ids", "skip_special_tokens", "return_tokens_as_token_ids")
    sampling = {name: value for name, value in same.items() if name not in (*own, "cache_salt")}
    form = {"structured_outputs": {"grammar": "start: %json {}"}}

    told = TOKEN_PROTOCOLS["generate"].fields(request_of([7, 8], sampling=EVERYTHING, form=SCHEMA), "m")

    assert told == {
        "model": "m",
        "token_ids": [7, 8],
        "stream": True,
        "sampling_params": sampling | form | {"detokenize": False, "logprobs": 3},
        "cache_salt": salted("t/"),
    }


@pytest.mark.parametrize(("asked", "told"), [(0, 0), (1, 2), (19, 20), (20, 20)])
def test_generate_is_asked_for_one_more_likely_token_up_to_vllm_s_limit(asked: int, told: int) -> None:
    body = generate_body(request_of([7], sampling=replace(EVERYTHING, logprobs=asked)), "m")

    assert body["sampling_params"].get("logprobs") == told


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
        (
            "generate",
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


@pytest.mark.parametrize("protocol", TOKEN_PROTOCOLS.values(), ids=TOKEN_PROTOCOLS)
def test_a_server_does_not_end_an_answer_that_ignores_its_end(protocol: TokenProtocol) -> None:
    body = protocol.body(request_of([7])._replace(ignore_eos=True), "m")

    assert (body[protocol.sampling] if protocol.sampling else body)["ignore_eos"] is True


def test_vllm_s_log_probabilities_are_by_token_id() -> None:
    rows = {
        "tokens": ["token_id:5"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -2}],
    }
    chunk = {"choices": [{"index": 0, "text": "x", "token_ids": [5], "logprobs": rows, "finish_reason": "length"}]}

    assert read_completions(orjson.dumps(chunk)) == ([Sampled(5, -0.5, ((5, -0.5), (9, -2)))], "length", 0)


def ranked(token: int, logprob: float, rank: int) -> dict[str, Any]:
    return {"token_id": token, "logprob": logprob, "rank": rank}


def test_generate_s_log_probabilities_have_the_chosen_token_among_the_likeliest_only_if_it_is_one() -> None:
    first = ranked(5, -0.5, 1) | {"top_logprobs": [ranked(5, -0.5, 1), ranked(9, -2, 2)]}
    last = ranked(6, -7, 30) | {"top_logprobs": [ranked(6, -7, 30), ranked(9, -2, 1)]}
    chunk = {"choices": [{"index": 0, "token_ids": [5, 6], "logprobs": {"content": [first, last]}}]}

    tokens = [Sampled(5, -0.5, ((5, -0.5), (9, -2))), Sampled(6, -7, ((9, -2),))]
    assert read_generate(orjson.dumps(chunk)) == (tokens, "", 0)


def test_log_probabilities_of_an_older_generate_are_no_tokens() -> None:
    rows = {"content": [{"token": "token_id:5", "logprob": -0.5}]}

    with pytest.raises(UpstreamBroken, match="without token ids"):
        read_generate(orjson.dumps({"choices": [{"index": 0, "token_ids": [5], "logprobs": rows}]}))


def test_no_more_likely_tokens_are_kept_than_are_asked_for() -> None:
    chosen = Sampled(6, -7, ((6, -7), (9, -1), (8, -2)))

    assert likeliest([chosen], 2) == [Sampled(6, -7, ((9, -1), (8, -2)))]


def test_llamacpp_s_log_probabilities_are_too() -> None:
    row = {"id": 5, "logprob": -0.5, "top_logprobs": [{"id": 5, "logprob": -0.5}, {"id": 9, "logprob": -2}]}
    chunk = {"content": "x", "tokens": [5], "stop": False, "completion_probabilities": [row]}

    assert read_llamacpp(orjson.dumps(chunk)) == ([Sampled(5, -0.5, ((5, -0.5), (9, -2)))], "", 0)


@pytest.mark.parametrize(("kind", "end"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_llamacpp_says_why_it_ends(kind: str, end: str) -> None:
    assert read_llamacpp(orjson.dumps({"content": "", "tokens": [], "stop": True, "stop_type": kind})) == ([], end, 0)


@pytest.mark.parametrize("read", [read_completions, read_generate])
def test_a_server_that_gives_no_ids_is_no_token_upstream(read: Any) -> None:
    with pytest.raises(UpstreamBroken, match="gives no token ids"):
        read(b'{"choices": [{"index": 0, "text": "x", "finish_reason": null}]}')


@pytest.mark.parametrize("read", [read_completions, read_generate])
def test_an_answer_that_the_server_gives_up_has_not_ended(read: Any) -> None:
    with pytest.raises(UpstreamBroken, match="ends its stream with abort"):
        read(b'{"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "abort"}]}')


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


def generate_server() -> StandIn:
    """vLLM's `/inference/v1/generate`, whose tokens have their end among them."""

    def events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        tokens = [*three(body["token_ids"]), END][: body["sampling_params"]["max_tokens"]]
        for token in tokens:
            reason = "stop" if token == END else None
            choice = {"index": 0, "token_ids": [token], "logprobs": None, "finish_reason": reason}
            yield {"request_id": "generate-tokens-1", "output_mode": "tokens", "choices": [choice], "usage": None}

    return StandIn({"/inference/v1/generate": events})


SERVERS: dict[str, Callable[[], StandIn]] = {
    "completions": lambda: token_server(three),
    "sglang": lambda: token_server(three, owned_by="sglang"),
    "generate": generate_server,
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
        assert (await said_by(transport, protocol, server))[:4] == [10, 11, 12, END]


@pytest.mark.parametrize("protocol", TOKEN_PROTOCOLS)
async def test_the_next_upstream_continues_at_the_next_token(transport: Transport, protocol: str) -> None:
    make = SERVERS[protocol]
    async with serving(make()) as first, serving(make()) as second:
        first.faults.append(Fault(after=2))

        assert (await said_by(transport, protocol, first, second))[:4] == [10, 11, 12, END]

    assert second.bodies[0]["token_ids" if protocol == "generate" else "prompt"] == [1, 10, 11]


async def test_the_upstream_that_the_job_was_taken_from_is_asked_for_tokens_first(transport: Transport) -> None:
    async with serving(token_server(three)) as first, serving(token_server(three)) as second:
        upstreams = [
            Upstream(Target.model_validate({"url": each.url}), transport, model="m") for each in (first, second)
        ]
        source = TokenSource(upstreams, TOKEN_PROTOCOLS["completions"], end=END)

        async for _ in source.tokens(lambda: request_of([1]), quota=upstreams[1].quota.name):
            pass

    assert (len(first.received), len(second.received)) == (0, 1)


async def test_each_upstream_is_held_to_a_form_in_its_own_way(transport: Transport) -> None:
    async with serving(token_server(three)) as vllm, serving(token_server(three)) as sglang:
        targets = [{"url": vllm.url, "provider": "vllm"}, {"url": sglang.url, "provider": "sglang"}]
        upstreams = [Upstream(Target.model_validate(each), transport, model="m") for each in targets]
        source = TokenSource(upstreams, TOKEN_PROTOCOLS["completions"], end=END)

        for upstream in upstreams:
            async for _ in source.tokens(lambda: request_of([1], form=SCHEMA), quota=upstream.quota.name):
                pass

    assert "json_schema" not in vllm.bodies[0]
    assert vllm.bodies[0]["structured_outputs"] == {"grammar": SCHEMA.lark}
    assert sglang.bodies[0]["json_schema"] == SCHEMA.json_schema
    assert source.protocol is TOKEN_PROTOCOLS["sglang"]  # which refuses what one of them cannot do


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
