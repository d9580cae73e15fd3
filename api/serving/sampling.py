"""The parameters of a body become the job's sampling parameters, and the grammar of its answer."""

import json
import secrets
from typing import Any

from api.schemas.extensions import Form
from api.schemas.sampling import GenerationRequest
from shared.domain.closed_schema import closed
from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar, GrammarKind, Sampling
from shared.settings import Settings

ANY_OBJECT = {"type": "object"}


def sampling_of(
    body: GenerationRequest, settings: Settings, *, n: int, max_tokens: int | None, logprobs: int | None
) -> Sampling:
    """Return the sampling parameters of a body. Raises InvalidRequest for more choices than the settings allow, and for
    limits that contradict each other. `max_tokens` -1 sets no limit, as llama.cpp's server defines it, and a `top_p` of
    0 allows the likeliest token alone."""
    if n > settings.choices_max:
        param = "n" if n == body.n else "best_of"
        raise InvalidRequest(f"'{param}' must be at most {settings.choices_max}.", param=param)
    max_tokens = None if max_tokens == -1 else max_tokens
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest(f"'min_tokens' must not exceed the limit of {max_tokens} tokens.", param="min_tokens")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Sampling(
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        seeded=body.seed is not None,
        temperature=0 if body.top_p == 0 else body.temperature,
        top_p=body.top_p or None,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty or body.repeat_penalty,
        presence_penalty=body.presence_penalty or 0,
        frequency_penalty=body.frequency_penalty or 0,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        max_tokens=max_tokens,
        clamped=settings.max_tokens == "clamp",
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        include_stop_str_in_output=bool(body.include_stop_str_in_output or body.no_stop_trim),
        skip_special_tokens=body.skip_special_tokens is not False,
        bad_words=tuple(body.bad_words or ()),
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        stop=tuple(stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        n=n,
        logprobs=logprobs,
        grammar=_grammar(body),
    )


def _grammar(body: GenerationRequest) -> Grammar | None:
    """Return the requested form of the answer. JSON without a schema is an object, as OpenAI defines it. Objects have
    no properties but those that a schema lists, unless it allows others."""
    wanted = body.response_format
    if wanted and wanted.type == "regex":
        return Grammar(kind=GrammarKind.REGEX, text=str(wanted.value), param="response_format")
    if wanted and wanted.type != "text":
        text = _closed_text(wanted.json_form or ANY_OBJECT)
        return Grammar(kind=GrammarKind.JSON_SCHEMA, text=text, param="response_format")
    return next(map(_grammar_of, body.forms), None)


def _grammar_of(form: Form) -> Grammar:
    match form.kind:
        case "json":
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=_closed_text(form.value), param=form.param)
        case "regex":
            return Grammar(kind=GrammarKind.REGEX, text=str(form.value), param=form.param)
        case "choice":
            rule = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in form.value)
            return Grammar(kind=GrammarKind.LARK, text=rule, param=form.param)
        case _:
            return Grammar(kind=GrammarKind.LARK, text=form.value, param=form.param)


def _closed_text(schema: dict[str, Any] | str) -> str:
    """Return the closed schema. A text that is no JSON stays as it is: the worker says what is wrong with it."""
    try:
        return json.dumps(closed(json.loads(schema) if isinstance(schema, str) else schema))
    except (ValueError, RecursionError):
        return str(schema)
