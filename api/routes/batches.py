"""`/v1/batches`: many requests from a file, run when there is room. Each key sees only its own."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.formats.listing import listing
from api.http.auth import caller_of
from api.http.json_route import JsonRoute
from api.schemas.batch import BatchRequest
from api.serving.services import Services, ServicesDep
from api.stores.batches import Batch, Status
from api.stores.pages import Body, PageRequest
from shared.domain.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/batches")
async def create_batch(body: BatchRequest, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Start a batch of the requests in a file. It waits in `validating` while other batches of the same key run."""
    services.redis_monitor.check(services.redis)
    caller = caller_of(request)
    record = await services.files.record(body.input_file_id, tenant=caller.tenant)
    if record.purpose != "batch":
        raise InvalidRequest("'input_file_id' must name a file with the purpose 'batch'.", param="input_file_id")
    batch = Batch(
        id=_new_id(),
        tenant=caller.tenant,
        key=caller.key.id if caller.key else "",
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        window_s=int(body.completion_window[:-1]) * 3600,
        status=Status.VALIDATING,
        at={Status.VALIDATING: int(time.time())},
        metadata=body.metadata or {},
        output_lifetime_s=body.output_expires_after.seconds
        if body.output_expires_after
        else services.settings.file_ttl_s,
    )
    await services.batches.create(batch, open_max=services.settings.batches_open_max)
    return batch.body()


@router.get("/v1/batches")
async def list_batches(
    request: Request,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List batches, the newest first."""
    tenant = caller_of(request).tenant

    async def pick(ids: Sequence[str]) -> list[Body]:
        return await _bodies(services, await services.batches.get_many(ids))

    asked = PageRequest(after=after, limit=limit, newest_first=True)
    bodies, more = await services.batches.page(tenant, asked, pick)
    return listing(bodies, more=more)


@router.get("/v1/batches/{batch_id}")
async def retrieve_batch(batch_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    return await _look(services, batch_id, caller_of(request).tenant)


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Cancel a batch. Its waiting and running requests are cancelled, and finished ones keep their results. A batch
    that has ended does not change."""
    tenant = caller_of(request).tenant
    batch = await services.batches.get(batch_id, tenant=tenant)
    if not batch.status.ended:
        await services.batches.ask_to_cancel(batch_id)
    return await _look(services, batch_id, tenant)


async def _look(services: Services, batch_id: str, tenant: str) -> dict[str, Any]:
    (body,) = await _bodies(services, [await services.batches.get(batch_id, tenant=tenant)])
    return body


async def _bodies(services: Services, batches: Sequence[Batch]) -> list[Body]:
    """Return the batch objects. A batch whose cancel was requested is shown as `cancelling`, even if its record is not
    updated yet."""
    asked = await services.batches.to_cancel([batch.id for batch in batches if not batch.status.ended])
    return [replace(batch, status=Status.CANCELLING).body() if batch.id in asked else batch.body() for batch in batches]


def _new_id() -> str:
    """Return an id that sorts behind all earlier ones, even within a second: batches run in that order."""
    return f"batch_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
