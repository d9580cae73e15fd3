"""`POST /v1/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.formats.completion import CompletionChunks, Form, WholeCompletion
from api.house import House, house_of
from api.schemas.completion import CompletionRequest

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def create_completion(
    body: CompletionRequest, request: Request, house: Annotated[House, Depends(house_of)]
) -> Response:
    """Text that goes on where each prompt ends, streamed or whole. The job is cancelled when the client leaves."""
    began = time.monotonic()
    job = await house.admission.completion(body)
    form = Form(n=body.n or 1, logprobs=body.logprobs is not None)
    if not body.stream:
        return await whole(house, job, WholeCompletion(job, form), request)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return await stream(house, job, CompletionChunks(job, form, include_usage=include_usage), began)
