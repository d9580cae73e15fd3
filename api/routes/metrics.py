"""`GET /metrics`, for Prometheus."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from api.house import House, house_of
from shared.demand import Demand
from shared.errors import QueueUnavailable
from shared.telemetry import CONTENT_TYPE

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(house: Annotated[House, Depends(house_of)]) -> Response:
    demands: list[Demand] = []
    with suppress(QueueUnavailable):
        demands = await house.demand.all()
    house.metrics.queue.show(demands, house.settings.target_wait_s)
    return Response(house.metrics.page(), media_type=CONTENT_TYPE)
