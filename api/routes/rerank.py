"""`POST /v1/rerank`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.formats.rerank import RankingCollector
from api.http.request_options import RequestOptions, request_options_of
from api.routes.json_route import JsonRoute
from api.schemas.rerank import RerankRequest
from api.serving.render_options import render_options_of
from api.serving.respond import respond_whole
from api.serving.services import Services, services_of
from api.serving.submission import Submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/rerank", response_model=None)
async def rerank(
    body: RerankRequest,
    request: Request,
    options: Annotated[RequestOptions, Depends(terms_of)],
    services: Annotated[Services, Depends(house_of)],
) -> Response:
    """Documents by how near they are to the query, by a cross-encoder's score or by their embeddings' cosine."""
    job = await services.admission.ranking(body, options)
    submission = Submission(
        job,
        render_options_of(job),
        lambda made: RankingCollector(made, body.texts, top_n=body.top_n, with_texts=body.return_documents),
    )
    return await respond_whole(services, submission, options, request)
