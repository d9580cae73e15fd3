"""`POST /v1/rerank`."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.formats.common import WholeOnly
from api.formats.rerank import RankingCollector
from api.http.request_options import RequestOptionsDep
from api.routes.json_route import JsonRoute
from api.schemas.rerank import RerankRequest
from api.serving.render_options import render_options_of
from api.serving.respond import respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import Submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/rerank", response_model=None)
async def rerank(
    body: RerankRequest,
    request: Request,
    options: RequestOptionsDep,
    services: ServicesDep,
) -> Response:
    """Rank documents by their relevance to the query: by a cross-encoder's score, or by the cosine of embeddings."""
    job = await services.admission.ranking(body, options)
    texts, top_n, with_texts = body.texts, body.top_n, body.return_documents
    formatter = WholeOnly(lambda made: RankingCollector(made, texts, top_n=top_n, with_texts=with_texts))
    return await respond_whole(services, Submission(job, render_options_of(job), formatter), options, request)
