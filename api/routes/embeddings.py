"""`POST /v1/embeddings`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import whole
from api.formats.embedding import EmbeddingList
from api.house import House, house_of
from api.schemas.embedding import EmbeddingRequest
from api.terms import Terms, terms_of
from api.view import view_of

router = APIRouter()


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(
    body: EmbeddingRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """A vector of unit length for each input. The job is cancelled when the client leaves, after its grace."""
    job = await house.admission.embedding(body, terms)
    base64 = body.encoding_format == "base64"
    return await whole(house, job, view_of(job), terms, lambda made: EmbeddingList(made, base64=base64), request)
