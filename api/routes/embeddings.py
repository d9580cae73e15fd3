"""`POST /v1/embeddings`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import whole
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.embedding import EmbeddingRequest
from api.terms import Terms, terms_of
from api.work import embedding_work

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(
    body: EmbeddingRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """A vector of unit length for each input. The job is cancelled when the client leaves, after its grace."""
    return await whole(house, await embedding_work(house, body, terms), terms, request)
