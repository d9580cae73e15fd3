"""`POST /v1/embeddings`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import whole
from api.formats.embedding import EmbeddingList
from api.house import House, house_of
from api.schemas.embedding import EmbeddingRequest

router = APIRouter()


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(
    body: EmbeddingRequest, request: Request, house: Annotated[House, Depends(house_of)]
) -> Response:
    """A vector of unit length for each input. The job is cancelled when the client leaves."""
    job = await house.admission.embedding(body)
    return await whole(house, job, EmbeddingList(job, base64=body.encoding_format == "base64"), request)
