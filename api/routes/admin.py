"""`/admin`: the operator's side of the queue, as `penstock jobs` has it. Behind a key of its own; without one there is
no such thing."""

import hmac
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.http.problems import Problem, Refused
from api.routes.jobs import job_object
from api.routes.json_route import JsonRoute
from api.schemas.admin import KeyLimits, NewKey, ReplayRequest
from api.serving.services import Services, services_of
from shared.catalog.api_keys import ApiKey
from shared.catalog.demand import demand_object, together
from shared.catalog.replay import Filter, Replayer
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.lifecycle import State

LISTED_MAX = 1000


def _require_operator(request: Request, services: Services) -> None:
    if not services.settings.admin_key:
        raise NotFound("There is no such route here.")
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not hmac.compare_digest(given.encode(), services.settings.admin_key.encode()):
        raise Refused(Problem(code="invalid_api_key", message="/admin needs PENSTOCK_ADMIN_KEY as bearer token."))


class OperatorRoute(JsonRoute):
    """Nobody else's body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            _require_operator(request, await services_of(request))
            return await handler(request)

        return handle


router = APIRouter(prefix="/admin", route_class=OperatorRoute)
InHouse = Annotated[Services, Depends(services_of)]


@router.get("/jobs")
async def list_jobs(
    services: InHouse,
    model: str | None = None,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 20,
) -> dict[str, Any]:
    """Jobs of one state or all, of one model or all."""
    found = []
    for name in [model] if model else await services.job_records.models():
        for each in [state] if state else list(State):
            found += [job_object(record) for record in await services.job_records.records(name, each, limit=limit)]
    return {"object": "list", "data": found}


@router.get("/demand")
async def show_demand(
    services: InHouse, model: Annotated[list[str] | None, Query(max_length=LISTED_MAX)] = None
) -> dict[str, Any]:
    """How many workers a model wants, and why; several are names for the same workers, and none stands for each that
    there is. For autoscalers: it is known while no worker runs."""
    target_s = services.settings.target_wait_s
    if model:
        return demand_object(together([await services.demand.read(name) for name in model]), target_s)
    return {"object": "list", "data": [demand_object(each, target_s) for each in await services.demand.all()]}


@router.get("/jobs/{job_id}")
async def show_job(job_id: str, services: InHouse) -> dict[str, Any]:
    """One job with its history and why it failed."""
    record = await services.job_records.record(job_id)
    history = [{"at_ms": at, "what": what} for at, what in record.timeline]
    about = {"tenant": record.tenant, "worker": record.worker or None, "traceback": record.traceback or None}
    return job_object(record) | about | {"timeline": history}


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, services: InHouse) -> dict[str, Any]:
    if await services.queue.cancel(job_id, by="operator") is None:
        raise NotFound(f"There is no job {job_id}.")
    return job_object(await services.job_records.record(job_id))


@router.post("/jobs/{job_id}/replay")
async def replay_job(job_id: str, services: InHouse) -> dict[str, Any]:
    """Run a failed job once more, as another one."""
    (replayed,) = [each async for each in Replayer(services.queue, services.job_records).replay([job_id], rate_per_s=0)]
    return replayed.body()


@router.post("/replay")
async def replay_jobs(body: ReplayRequest, services: InHouse) -> dict[str, Any]:
    """Run every failed job once more that the filter finds."""
    replayer = Replayer(services.queue, services.job_records)
    wanted = Filter(model=body.model, since_s=body.since_s, error=body.error, tenant=body.tenant)
    found = [record.id async for record in replayer.find(wanted)]
    if body.dry_run:
        return {"object": "list", "data": [{"job": job_id} for job_id in found]}
    return {
        "object": "list",
        "data": [each.body() async for each in replayer.replay(found, rate_per_s=body.rate_per_s)],
    }


@router.post("/keys")
async def create_key(body: NewKey, services: InHouse) -> dict[str, Any]:
    """A new API key. Its secret is in this answer and nowhere else."""
    limits = body.changes(time.time())
    secret = limits.pop("secret", "")
    key, secret = await services.keys.create(limits.pop("name"), secret=secret, **limits)
    return await _key_object(services, key) | {"secret": secret}


@router.get("/keys")
async def list_keys(services: InHouse) -> dict[str, Any]:
    return {"object": "list", "data": [await _key_object(services, key) for key in await services.keys.all()]}


@router.get("/keys/{key_id}")
async def show_key(key_id: str, services: InHouse) -> dict[str, Any]:
    return await _key_object(services, await services.keys.get(key_id))


@router.patch("/keys/{key_id}")
async def change_key(key_id: str, body: KeyLimits, services: InHouse) -> dict[str, Any]:
    """What is given changes, the rest stays. It counts for requests from two seconds later on."""
    return await _key_object(services, await services.keys.change(key_id, **body.changes(time.time())))


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, services: InHouse) -> dict[str, Any]:
    await services.keys.revoke(key_id)
    return {"id": key_id, "object": "api_key.deleted", "deleted": True}


async def _key_object(services: Services, key: ApiKey) -> dict[str, Any]:
    return {"object": "api_key", **asdict(key), "tokens_this_month": await services.keys.used(key.id)}


@router.post("/models/{name:path}/pause")
async def pause_model(name: str, services: InHouse) -> dict[str, Any]:
    """Claim no more of its waiting jobs; those that run go on."""
    return await _pause(services, name, paused=True)


@router.post("/models/{name:path}/resume")
async def resume_model(name: str, services: InHouse) -> dict[str, Any]:
    return await _pause(services, name, paused=False)


@router.delete("/models/{name:path}")
async def forget_model(name: str, services: InHouse) -> dict[str, Any]:
    """Forget a model that nobody serves any more. It must have no worker, and no job that waits or runs."""
    await services.model_registry.model(name)
    if in_use := await services.queue.forget(name):
        message = f"The model '{name}' is in use: {in_use}. Stop its workers and cancel its jobs first."
        raise InvalidRequest(message, param="name")
    return {"id": name, "object": "model", "deleted": True}


async def _pause(services: Services, name: str, *, paused: bool) -> dict[str, Any]:
    await services.model_registry.model(name)
    await services.queue.pause(name, paused=paused)
    return {"model": name, "paused": paused}
