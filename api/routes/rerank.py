"""`POST /v1/rerank`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import whole
from api.formats.common import WholeOnly
from api.formats.rerank import Ranking
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.rerank import RerankRequest
from api.terms import Terms, terms_of
from api.view import view_of
from api.work import Work

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/rerank", response_model=None)
async def rerank(
    body: RerankRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """Documents by how near they are to the query, by a cross-encoder's score or by their embeddings' cosine."""
    job = await house.admission.ranking(body, terms)
    texts, top_n, with_texts = body.texts, body.top_n, body.return_documents
    formatter = WholeOnly(lambda made: Ranking(made, texts, top_n=top_n, with_texts=with_texts))
    return await whole(house, Work(job, view_of(job), formatter), terms, request)
