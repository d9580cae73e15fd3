"""The protocols in which upstreams take and give token ids, so that an answer is continued exactly. Pure.

`completions` is `POST /v1/completions` with `return_token_ids`, as vLLM (0.10.2 and later) and SGLang (0.5.23 and
later) have it; `generate` is `POST /inference/v1/generate` of a vLLM (0.32) that was started with `--enable-scale-out`;
`llamacpp` is `POST /completion` of llama.cpp's server. Prompt and output so far are the prompt there.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import orjson

from shared.domain.errors import InvalidRequest
from shared.domain.job import Sampling
from workers.engines.upstream.answers import failure_in
from workers.engines.upstream.chat_body import salted
from workers.engines.upstream.errors import UpstreamBroken
from workers.scheduling.sequence import Sampled, SamplingParams

LIMITED = frozenset({"length", "limit"})
ABORTED = frozenset({"abort", "error"})
TOP_MAX = 20  # vLLM's own limit of log probabilities, if it was started with no other
AS_ID = "token_id:"


class Form(NamedTuple):
    """The form that an answer must have, in llguidance's dialect of Lark, and by a JSON Schema where one says all of
    it. `param` is the request's parameter that asks for it."""

    lark: str
    json_schema: str | None
    param: str


class TokenRequest(NamedTuple):
    """One sequence to continue: `ids` are its prompt and output so far, `tokens_max` what may follow."""

    ids: list[int]
    tokens_max: int
    sampling: SamplingParams
    form: Form | None
    salt: str
    ignore_eos: bool = False

    def after(self, tokens: Seq[Sampled]) -> "TokenRequest":
        """The request for what follows these tokens."""
        ids = [*self.ids, *(each.token for each in tokens)]
        return self._replace(ids=ids, tokens_max=self.tokens_max - len(tokens))


class TokenChunk(NamedTuple):
    """New tokens, and why no more follow: `stop`, `length`, or '' while there may be more. `total` is how many tokens
    the server has made with them; 0 if it does not say."""

    tokens: list[Sampled]
    end: str = ""
    total: int = 0


class TokenProtocol(NamedTuple):
    """`path` is below the URL, or below its root where it begins with `..`. `hold` makes the fields that hold an answer
    to a form; it raises InvalidRequest for one that the server cannot be held to. `lacks` are sampling parameters that
    the server does not have. `loses_ids` says that a stream lacks the ids of all but the last token of a character,
    which a whole answer has: llama.cpp sends nothing before the character is complete, and then one id. `sampling` is
    the field of the body that holds the sampling parameters and the form; '' if they are in the body itself. `needs`
    says which servers have the path, if not all that speak OpenAI's protocol may have it."""

    path: str
    body: Callable[[TokenRequest, str], dict[str, Any]]
    read: Callable[[bytes], TokenChunk]
    hold: Callable[[Form], dict[str, Any]]
    lacks: frozenset[str] = frozenset()
    loses_ids: bool = False
    sampling: str = ""
    needs: str = ""

    def require_known(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for a sampling parameter that the server does not have."""
        for name in self.lacks:
            if getattr(sampling, name):
                message = f"'{name}' must not be sent to this model: its server has no such parameter."
                raise InvalidRequest(message, param=name)

    def fields(self, request: TokenRequest, model: str) -> dict[str, Any]:
        """The body of a request, held to its form. Raises InvalidRequest."""
        body = self.body(request, model)
        if request.form:
            (body[self.sampling] if self.sampling else body).update(self.hold(request.form))
        return body


def hold_by_lark(form: Form) -> dict[str, Any]:
    """vLLM reads the dialect, as our own engines do, so both allow the same tokens."""
    return {"structured_outputs": {"grammar": form.lark}}


def hold_by_schema(form: Form) -> dict[str, Any]:
    """SGLang's field."""
    return {"json_schema": _only_schema(form)}


def hold_by_parsed_schema(form: Form) -> dict[str, Any]:
    """llama.cpp's field."""
    return {"json_schema": orjson.loads(_only_schema(form))}


def _only_schema(form: Form) -> str:
    if form.json_schema is None:
        message = f"'{form.param}' must not be sent to this model: its server can be held to a JSON Schema alone."
        raise InvalidRequest(message, param=form.param)
    return form.json_schema


def completions_body(request: TokenRequest, model: str) -> dict[str, Any]:
    """Stop strings and ends of answers are ours, so the server is told of no stop string and gives ids of ends, too."""
    body = {
        "model": model,
        "prompt": request.ids,
        "stream": True,
        "return_token_ids": True,
        "skip_special_tokens": False,
    } | _sampling(request)
    if request.sampling.logprobs is not None:
        body["return_tokens_as_token_ids"] = True
    return body | _salt(request)


def generate_body(request: TokenRequest, model: str) -> dict[str, Any]:
    """The server makes no text of the tokens. Of the likeliest tokens it leaves out the last one if the chosen one is
    none of them, so one more is asked for."""
    sampling = _sampling(request) | {"detokenize": False}
    if request.sampling.logprobs:
        sampling["logprobs"] = min(request.sampling.logprobs + 1, TOP_MAX)
    body = {"model": model, "token_ids": request.ids, "stream": True, "sampling_params": sampling}
    return body | _salt(request)


def _salt(request: TokenRequest) -> dict[str, Any]:
    return {"cache_salt": salted(request.salt)} if request.salt else {}


def _sampling(request: TokenRequest) -> dict[str, Any]:
    """The sampling parameters in vLLM's words."""
    sampling = request.sampling
    fields: dict[str, Any] = {
        "max_tokens": request.tokens_max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop_token_ids": sorted(sampling.banned),
    }
    if request.ignore_eos:
        fields["ignore_eos"] = True
    if sampling.min_tokens:
        fields["min_tokens"] = sampling.min_tokens
    if sampling.allowed_token_ids:
        fields["allowed_token_ids"] = list(sampling.allowed_token_ids)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.seeded:
        fields["seed"] = sampling.seed
    if sampling.logprobs is not None:
        fields["logprobs"] = sampling.logprobs
    return fields


def read_generate(data: bytes) -> TokenChunk:
    if not (choices := _parsed(data).get("choices")):
        return TokenChunk([])
    choice = choices[0]
    if (ids := choice.get("token_ids")) is None:
        raise UpstreamBroken("gives no token ids")
    rows = (choice.get("logprobs") or {}).get("content")
    if rows and "token_id" not in rows[0]:
        raise UpstreamBroken("gives log probabilities without token ids: vLLM 0.32 gives them")
    tokens = [_ranked(row) for row in rows] if rows else [Sampled(id_) for id_ in ids]
    return TokenChunk(tokens, _end(choice.get("finish_reason")))


def read_completions(data: bytes) -> TokenChunk:
    chunk = _parsed(data)
    if not (choices := chunk.get("choices")):
        return TokenChunk([])
    choice = choices[0]
    if (ids := choice.get("token_ids")) is None:
        raise UpstreamBroken("gives no token ids: return_token_ids is not understood there")
    rows = choice.get("logprobs")
    tokens = [Sampled(id_) for id_ in ids] if not rows else _likely(ids, rows)
    return TokenChunk(tokens, _end(choice.get("finish_reason")))


def llamacpp_body(request: TokenRequest, model: str) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": request.ids,
        "stream": True,
        "return_tokens": True,
        "n_predict": request.tokens_max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(request.ids) + request.tokens_max,  # all of it; newer ones refuse -1
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "cache_prompt": True,
        "ignore_eos": request.ignore_eos,
    }
    if sampling.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias]
    if sampling.seeded:
        body["seed"] = sampling.seed % 2**32
    if sampling.logprobs is not None:
        body["n_probs"] = max(sampling.logprobs, 1)
    return body


def read_llamacpp(data: bytes) -> TokenChunk:
    chunk = _parsed(data)
    ids = chunk.get("tokens") or []
    rows = chunk.get("completion_probabilities")
    tokens = [Sampled(id_) for id_ in ids] if not rows else [_probable(row) for row in rows]
    end = _end(chunk.get("stop_type") or "eos") if chunk.get("stop") else ""
    return TokenChunk(tokens, end, chunk.get("tokens_predicted") or 0)


WORDS = frozenset({"bad_words"})  # a matter of texts for these servers, which are given none

TOKEN_PROTOCOLS = {
    "completions": TokenProtocol("/completions", completions_body, read_completions, hold_by_lark, WORDS),
    "sglang": TokenProtocol(
        "/completions", completions_body, read_completions, hold_by_schema, WORDS | {"allowed_token_ids"}
    ),
    "generate": TokenProtocol(
        "../inference/v1/generate",
        generate_body,
        read_generate,
        hold_by_lark,
        WORDS,
        sampling="sampling_params",
        needs="a vLLM (0.32) that was started with --enable-scale-out",
    ),
    "llamacpp": TokenProtocol(
        "../completion",
        llamacpp_body,
        read_llamacpp,
        hold_by_parsed_schema,
        WORDS | {"min_tokens", "allowed_token_ids"},
        True,
    ),
}


def spoken_by(provider: str, protocol: TokenProtocol) -> TokenProtocol:
    """Return the protocol as the provider's servers speak it: SGLang is held to a form by a field of its own."""
    sglang = provider == "sglang" and protocol is TOKEN_PROTOCOLS["completions"]
    return TOKEN_PROTOCOLS["sglang"] if sglang else protocol


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamBroken(f"sends what is no JSON: {data[:80]!r}") from error
    if failure := failure_in(chunk):
        raise failure
    content: Mapping[str, Any] = chunk
    return content


def likeliest(tokens: Seq[Sampled], count: int) -> list[Sampled]:
    """The tokens, each with so many of its likeliest pairs, best first: vLLM puts the chosen one before them."""
    return [
        each._replace(top=tuple(sorted(each.top, key=lambda pair: -pair[1])[:count])) if each.top else each
        for each in tokens
    ]


def _end(reason: str | None) -> str:
    """Raises UpstreamBroken for an answer that the server gave up."""
    if reason in ABORTED:
        raise UpstreamBroken(f"ends its stream with {reason}")
    return "" if not reason else "length" if reason in LIMITED else "stop"


def _likely(ids: Seq[int], rows: Mapping[str, Any]) -> list[Sampled]:
    """Tokens with their log probabilities, whose tokens are told as `token_id:5`."""
    top = rows.get("top_logprobs") or [None] * len(ids)
    return [
        Sampled(id_, logprob, tuple((int(name.removeprefix(AS_ID)), value) for name, value in (likely or {}).items()))
        for id_, logprob, likely in zip(ids, rows["token_logprobs"], top, strict=True)
    ]


def _ranked(row: Mapping[str, Any]) -> Sampled:
    """A token of `generate`, whose list of the likeliest has the chosen one in any case."""
    rows = row.get("top_logprobs") or ()
    top = tuple((each["token_id"], each["logprob"]) for each in rows if (each.get("rank") or 1) <= len(rows))
    return Sampled(row["token_id"], row["logprob"], top)


def _probable(row: Mapping[str, Any]) -> Sampled:
    top = tuple((each["id"], each["logprob"]) for each in row.get("top_logprobs") or ())
    return Sampled(row["id"], row["logprob"], top)
