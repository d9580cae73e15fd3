"""Passing on gives the server behind a model the fields of a body that Penstock does not know."""

from typing import Any

from api.schemas.sampling import GenerationRequest
from shared.domain.job import ModelInfo


def passed_on(body: GenerationRequest, model: ModelInfo) -> dict[str, Any]:
    """Return what the model's server may understand of the body, as it was sent: its unknown fields, the form of the
    answer, whether to reason and how long to answer, and `keep_alive`. A model that was never loaded may understand
    anything. Raises InvalidRequest for a field that means nothing to this model."""
    if model.capabilities and "extra_parameters" not in model.capabilities:
        body.require_known()
        return {}
    form = body.response_format
    asked = {"response_format": form.model_dump(by_alias=True, exclude_none=True)} if form else {}
    kept = {} if body.keep_alive is None else {"keep_alive": body.keep_alive}
    unknown = body.model_extra or {} if model.capabilities else body.extra
    return {**unknown, **body.as_sent(), **asked, **kept}
