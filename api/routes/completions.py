"""`POST /v1/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.http.request_options import RequestOptions, request_options_of
from api.routes.json_route import JsonRoute
from api.schemas.completion import CompletionRequest
from api.serving.respond import respond_stream, respond_whole
from api.serving.services import Services, services_of
from api.serving.submission import completion_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", response_model=None)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    options: Annotated[RequestOptions, Depends(terms_of)],
    services: Annotated[Services, Depends(house_of)],
) -> Response:
    """Text that goes on where each prompt ends, streamed or whole. The job is cancelled when the client leaves, after
    its grace."""
    began = time.monotonic()
    submission = await completion_submission(services.admission, body, options)
    return await (
        respond_stream(services, submission, options, began)
        if body.stream
        else respond_whole(services, submission, options, request)
    )
