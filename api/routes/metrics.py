"""`GET /metrics`, for Prometheus."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from api.serving.services import Services, services_of
from shared.catalog.demand import Demand
from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import CONTENT_TYPE

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(services: Annotated[Services, Depends(house_of)]) -> Response:
    demands: list[Demand] = []
    with suppress(QueueUnavailable):
        demands = await services.demand.all()
    services.metrics.queue.show(demands, services.settings.target_wait_s)
    return Response(services.metrics.page(), media_type=CONTENT_TYPE)
