"""`POST /v1/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.formats.completion import WholeCompletion
from api.house import House, house_of
from api.schemas.completion import CompletionRequest
from api.terms import Terms, terms_of
from api.view import view_of

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """Text that goes on where each prompt ends, streamed or whole. The job is cancelled when the client leaves, after
    its grace."""
    began = time.monotonic()
    job = await house.admission.completion(body, terms)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    view = view_of(job, include_usage=include_usage, shown=body.n or 1, logprobs=body.logprobs is not None)
    if not body.stream:
        return await whole(house, job, view, terms, lambda answered: WholeCompletion(answered, view.form), request)
    return await stream(house, job, view, terms, began)
