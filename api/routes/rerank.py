"""`POST /v1/rerank`."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.rerank import RerankRequest
from api.serving.respond import respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import ranking_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/rerank", response_model=None)
async def rerank(
    body: RerankRequest,
    request: Request,
    options: RequestOptionsDep,
    services: ServicesDep,
) -> Response:
    """Rank documents by their relevance to the query: by a cross-encoder's score, or by the cosine of embeddings."""
    return await respond_whole(services, await ranking_submission(services, body, options), options, request)
