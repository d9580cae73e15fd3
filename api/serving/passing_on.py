"""What a body holds for the server behind a model: fields that Penstock does not know, and content that is no text."""

from collections.abc import Iterator, Mapping
from typing import Any

from api.schemas.chat import MEDIA, media_refusal
from api.schemas.sampling import GenerationRequest
from shared.domain.job import ModelInfo


def require_media(request: Mapping[str, Any], model: ModelInfo) -> None:
    """Raise InvalidRequest for content of a job's messages that the model cannot take."""
    for kind in _media(request):
        if MEDIA[kind] not in model.capabilities:
            raise media_refusal(kind)


def passed_on(body: GenerationRequest, model: ModelInfo) -> dict[str, Any]:
    """Return what the model's server may understand of the body, as it was sent: its unknown fields, and the form of
    the answer. Raises InvalidRequest for a field that means nothing to this model."""
    if "extra_parameters" not in model.capabilities:
        body.require_known()
        return {}
    form = body.response_format
    asked = {"response_format": form.model_dump(by_alias=True, exclude_none=True)} if form else {}
    return {**(body.model_extra or {}), **asked}


def _media(request: Mapping[str, Any]) -> Iterator[str]:
    for message in request.get("messages") or ():
        content = message.get("content")
        yield from (part["type"] for part in content if part["type"] in MEDIA) if isinstance(content, list) else ()
