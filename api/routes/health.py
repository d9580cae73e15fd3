"""Health checks. `live` needs only this process; `ready` needs Redis, too, and so do the names that vLLM gives it."""

from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.serving.services import ServicesDep
from shared.domain.errors import QueueUnavailable
from shared.redis.client import translated

router = APIRouter(include_in_schema=False)


@router.get("/health/live")
async def live() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/version")
async def release() -> Response:
    return JSONResponse({"version": version("penstock")})


@router.get("/health")
@router.get("/ping")
@router.get("/health/ready")
async def ready(services: ServicesDep) -> Response:
    try:
        with translated():
            await services.redis.ping()
    except QueueUnavailable as error:
        return JSONResponse({"status": "unavailable", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ok"})
