"""Health and metrics. Live needs nothing; ready needs Redis."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from api.house import House, house_of
from shared.demand import Demand
from shared.errors import QueueUnavailable
from shared.redis_client import translated
from shared.telemetry import CONTENT_TYPE

router = APIRouter(include_in_schema=False)


@router.get("/health/live")
async def live() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/health/ready")
async def ready(house: Annotated[House, Depends(house_of)]) -> Response:
    try:
        with translated():
            await house.redis.ping()
    except QueueUnavailable as error:
        return JSONResponse({"status": "unavailable", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(house: Annotated[House, Depends(house_of)]) -> Response:
    demands: list[Demand] = []
    with suppress(QueueUnavailable):
        demands = await house.demand.all()
    house.metrics.queue.show(demands, house.settings.target_wait_s)
    return Response(house.metrics.page(), media_type=CONTENT_TYPE)
