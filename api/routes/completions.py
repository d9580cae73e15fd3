"""`POST /v1/completions`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import respond
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
    work = await completion_work(house, body, terms)
    return await respond(house, work, terms, request, streamed=bool(body.stream))
