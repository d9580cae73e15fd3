"""`POST /v1/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.completion import CompletionRequest
from api.terms import Terms, terms_of
from api.work import completion_work

router = APIRouter(route_class=JsonRoute)


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
    work = await completion_work(house.admission, body, terms)
    return await (stream(house, work, terms, began) if body.stream else whole(house, work, terms, request))
