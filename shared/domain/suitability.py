"""Suitability checks that a model can do what a job needs. Pure: a job and a model's description in, an error out."""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from shared.domain.errors import ContextLengthExceeded, InvalidRequest
from shared.domain.job import Job, Kind, ModelInfo, text_of

# The types of content that only some models take, and the capability that says so.
MEDIA = {"image_url": "images", "input_audio": "audio", "video_url": "video", "file": "files"}
FORMS = {"response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
FORMS |= {"json_schema", "regex", "ebnf", "grammar"}
# A job holds these in another form, too, or they cannot change an answer.
KNOWN_EXTRA = FORMS | {"keep_alive", "thinking", "enable_thinking", "verbosity", "prediction"}
KNOWN_EXTRA |= {"add_generation_prompt", "continue_final_message"}
OF_TOKENS = {"include_stop_str_in_output", "no_stop_trim", "skip_special_tokens", "bad_words", "allowed_token_ids"}
KNOWN_EXTRA |= OF_TOKENS | {"guided_decoding_backend"}


def require_suited(job: Job, model: ModelInfo) -> None:
    """Check a job that was admitted for another model. Raises InvalidRequest for a capability that the model lacks, or
    ContextLengthExceeded."""
    if job.kind is Kind.TOKENS:
        raise InvalidRequest("The tokens of a text are those of one model: another one cannot answer for it.")
    for needed in _needs(job):
        if model.capabilities and needed not in model.capabilities:
            has = ", ".join(model.capabilities)
            raise InvalidRequest(f"The model '{model.name}' lacks the capability '{needed}'; it has: {has}.")
    _require_sampled(job, model)
    require_media(job.request, model)
    require_fit(job, model)


def _require_sampled(job: Job, model: ModelInfo) -> None:
    """Raise InvalidRequest for parameters that only models of tokens have, and of others those that name them. A model
    of tokens bounds its prompts' characters; one that answers in text does not."""
    if model.prompt_chars_max or not model.capabilities:
        return
    for ability, param in _sampled(job):
        if ability not in model.capabilities:
            message = f"'{param}' must not be sent to the model '{model.name}', which has no such ability."
            raise InvalidRequest(message, param=param)


def _sampled(job: Job) -> Iterator[tuple[str, str]]:
    """The abilities that the job's sampling and its prompts need, by the parameters that ask for them."""
    sampling = job.sampling
    asked = {
        "logprobs": sampling.logprobs is not None,
        "logit_bias": sampling.logit_bias,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "include_stop_str_in_output": sampling.include_stop_str_in_output,
        "skip_special_tokens": not sampling.skip_special_tokens,
        "bad_words": sampling.bad_words,
        "allowed_token_ids": sampling.allowed_token_ids,
        "stop_token_ids": sampling.stop_token_ids,
    }
    sent = job.request.get("extra", ())  # the model's server understands what came as it was sent
    yield from ((name, name) for name, wanted in asked.items() if wanted and not (name in OF_TOKENS and name in sent))
    if job.request.get("drop_oldest"):
        yield "truncation", "truncation"
    if any(not isinstance(prompt, str) for prompt in job.request.get("prompts") or ()):
        yield "token_ids", "prompt"
    if job.request.get("prompt_logprobs") is not None:
        yield "prompt_logprobs", "logprobs"


def require_media(request: Mapping[str, Any], model: ModelInfo) -> None:
    """Raise InvalidRequest for content of a job's messages that the model cannot take. Its worker finds that out if
    nobody knows yet what it can take."""
    for kind in _media(request):
        if model.capabilities and MEDIA[kind] not in model.capabilities:
            raise media_refusal(kind)


def require_taken(request: Mapping[str, Any], model: ModelInfo) -> None:
    """Raise InvalidRequest for media and parameters of a job that was admitted before anybody knew its model."""
    require_media(request, model)
    unknown = [name for name in request.get("extra", ()) if name not in KNOWN_EXTRA]
    if unknown and "extra_parameters" not in model.capabilities:
        raise InvalidRequest(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0])


def media_refusal(kind: Any) -> InvalidRequest:
    return InvalidRequest(f"'messages' must not contain content of type '{kind}'.", param="messages.content")


def require_fit(job: Job, model: ModelInfo) -> None:
    """Raise ContextLengthExceeded for a prompt that cannot fit however it is tokenised, so that no worker sees it. One
    whose oldest messages may be dropped is left to the worker."""
    if job.request.get("drop_oldest"):
        return
    if job.kind is Kind.CHAT:
        param, prompts = "messages", ["".join(map(text_of, job.request["messages"]))]
    else:
        param, prompts = "prompt", job.request.get("prompts", [])
    for prompt in prompts:
        most = model.prompt_chars_max if isinstance(prompt, str) else model.context_length
        if most and len(prompt) > most:
            unit = "characters, which are more" if isinstance(prompt, str) else "tokens"
            raise ContextLengthExceeded(
                f"This model's maximum context length is {model.context_length} tokens. However, your {param} of "
                f"{len(prompt)} {unit}. Please reduce the length of the {param}.",
                param=param,
            )


def _needs(job: Job) -> Iterator[str]:
    """The capabilities that the job cannot do without, beside those of its media."""
    match job.kind:
        case Kind.CHAT:
            yield "chat"
        case Kind.COMPLETION:
            yield "completions"
        case Kind.EMBEDDING:
            yield "rerank" if job.request.get("rank") else "embeddings"
        case Kind.TOKENS:
            return
        case _:
            assert_never(job.kind)
    if job.request.get("tools"):
        yield "tools"
    if job.sampling.grammar:
        yield "structured_outputs"
    if job.request.get("extra"):
        yield "extra_parameters"


def _media(request: Mapping[str, Any]) -> Iterator[str]:
    for message in request.get("messages") or ():
        content = message.get("content")
        yield from (part["type"] for part in content if part["type"] in MEDIA) if isinstance(content, list) else ()
