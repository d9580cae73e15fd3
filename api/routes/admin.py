"""`/admin`: the operator's side of the queue, like `penstock jobs`. It has a key of its own; without one the routes do
not exist."""

import hmac
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.problems import Problem, Refused
from api.routes.jobs import job_object
from api.schemas.admin import KeyLimits, NewKey, ReplayRequest, RerunChanges, RerunRequest
from api.serving.services import Services, ServicesDep, services_of
from shared.catalog.api_keys import ApiKey
from shared.catalog.comparison import Written, compare
from shared.catalog.demand import demand_object, together
from shared.catalog.replay import Filter, Replayer
from shared.catalog.rerun import Rerunner
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.lifecycle import State

LISTED_MAX = 1000


def require_operator(request: Request, services: Services) -> None:
    """Raise NotFound where there is no operator's key, and Refused for a request without it."""
    if not services.settings.admin_key:
        raise NotFound("There is no such route here.")
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not hmac.compare_digest(given.encode(), services.settings.admin_key.encode()):
        raise Refused(Problem(code="invalid_api_key", message="/admin needs PENSTOCK_ADMIN_KEY as bearer token."))


class OperatorRoute(JsonRoute):
    """A route that reads the body only of a request with the operator's key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            require_operator(request, await services_of(request))
            return await handler(request)

        return handle


router = APIRouter(prefix="/admin", route_class=OperatorRoute)


@router.get("/jobs")
async def list_jobs(
    services: ServicesDep,
    model: str | None = None,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 20,
) -> dict[str, Any]:
    """List jobs in one state or all, of one model or all."""
    found = []
    for name in [model] if model else await services.job_records.models():
        for each in [state] if state else list(State):
            found += [job_object(record) for record in await services.job_records.records(name, each, limit=limit)]
    return {"object": "list", "data": found}


@router.get("/demand")
async def show_demand(
    services: ServicesDep, model: Annotated[list[str] | None, Query(max_length=LISTED_MAX)] = None
) -> dict[str, Any]:
    """Show how many workers a model wants, and why. Several models are taken as names of the same workers; without
    `model`, every known model is listed. Autoscalers can use this while no worker runs."""
    target_s = services.settings.target_wait_s
    if model:
        return demand_object(together([await services.demand.read(name) for name in model]), target_s)
    return {"object": "list", "data": [demand_object(each, target_s) for each in await services.demand.all()]}


@router.get("/jobs/{job_id}")
async def show_job(job_id: str, services: ServicesDep) -> dict[str, Any]:
    """Show one job with its history and the reason of a failure."""
    record = await services.job_records.record(job_id)
    history = [{"at_ms": at, "what": what} for at, what in record.timeline]
    about = {"tenant": record.tenant, "worker": record.worker or None, "traceback": record.traceback or None}
    return job_object(record) | about | {"timeline": history}


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, services: ServicesDep) -> dict[str, Any]:
    if await services.queue.cancel(job_id, by="operator") is None:
        raise NotFound(f"There is no job {job_id}.")
    return job_object(await services.job_records.record(job_id))


@router.post("/jobs/{job_id}/replay")
async def replay_job(
    job_id: str, services: ServicesDep, to_model: Annotated[str | None, Query(min_length=1)] = None
) -> dict[str, Any]:
    """Run a failed job once more, as a new job, of another model if `to_model` names one."""
    replayer = _replayer(services)
    to = await replayer.target(to_model)
    (replayed,) = [each async for each in replayer.replay([job_id], rate_per_s=0, to=to)]
    if replayed.refusal:
        raise InvalidRequest(replayed.refusal, param="to_model")
    return replayed.body()


@router.post("/replay")
async def replay_jobs(body: ReplayRequest, services: ServicesDep) -> dict[str, Any]:
    """Run every failed job that matches the filter once more."""
    replayer = _replayer(services)
    to = await replayer.target(body.to_model)
    wanted = Filter(model=body.model, since_s=body.since_s, error=body.error, tenant=body.tenant)
    found = [record.id async for record in replayer.find(wanted)]
    if body.dry_run:
        return {"object": "list", "data": [{"job": job_id} for job_id in found]}
    return {
        "object": "list",
        "data": [each.body() async for each in replayer.replay(found, rate_per_s=body.rate_per_s, to=to)],
    }


@router.post("/jobs/{job_id}/rerun")
async def rerun_job(job_id: str, body: RerunChanges, services: ServicesDep) -> dict[str, Any]:
    """Run any kept job again as a new job, with changes. The job itself stays as it is."""
    return (await _rerunner(services).rerun(job_id, body.changes())).body()


@router.post("/rerun")
async def rerun_jobs(body: RerunRequest, services: ServicesDep) -> dict[str, Any]:
    """Run many kept jobs again as new jobs of the batch class, with changes."""
    rerunner = _rerunner(services)
    found = body.jobs or await rerunner.find(body.selection())
    if body.dry_run:
        return {"object": "list", "data": [{"job": job_id} for job_id in found]}
    return {"object": "list", "data": [each.body() async for each in rerunner.rerun_all(found, body.changes())]}


@router.get("/jobs/{job_id}/compare")
async def compare_jobs(
    job_id: str, services: ServicesDep, other: Annotated[str, Query(alias="with", min_length=1)]
) -> dict[str, Any]:
    """Compare two jobs: their texts, tokens, times, finish reasons and usage."""
    records = [await services.job_records.record(each) for each in (job_id, other)]
    pages = await services.queue.read([(job_id, 0), (other, 0)])
    one, two = (Written(record=r, events=page.events) for r, page in zip(records, pages, strict=True))
    return compare(one, two)


def _rerunner(services: Services) -> Rerunner:
    return Rerunner(services.queue, services.job_records, _replayer(services), services.settings)


def _replayer(services: Services) -> Replayer:
    return Replayer(services.queue, services.job_records, services.model_registry, services.keys)


@router.post("/keys")
async def create_key(body: NewKey, services: ServicesDep) -> dict[str, Any]:
    """Create an API key. Only this answer contains its secret."""
    limits = body.changes(time.time())
    secret = limits.pop("secret", "")
    key, secret = await services.keys.create(limits.pop("name"), secret=secret, **limits)
    return await _key_object(services, key) | {"secret": secret}


@router.get("/keys")
async def list_keys(services: ServicesDep) -> dict[str, Any]:
    return {"object": "list", "data": [await _key_object(services, key) for key in await services.keys.all()]}


@router.get("/keys/{key_id}")
async def show_key(key_id: str, services: ServicesDep) -> dict[str, Any]:
    return await _key_object(services, await services.keys.get(key_id))


@router.patch("/keys/{key_id}")
async def change_key(key_id: str, body: KeyLimits, services: ServicesDep) -> dict[str, Any]:
    """Change the given fields of a key. The change applies to requests after two seconds."""
    return await _key_object(services, await services.keys.change(key_id, **body.changes(time.time())))


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, services: ServicesDep) -> dict[str, Any]:
    await services.keys.revoke(key_id)
    return {"id": key_id, "object": "api_key.deleted", "deleted": True}


async def _key_object(services: Services, key: ApiKey) -> dict[str, Any]:
    counts = {
        "tokens_this_month": await services.keys.used(key.id),
        "cost_micros_this_month": await services.keys.costs(key.id),
    }
    return {"object": "api_key", **asdict(key), **counts}


@router.post("/models/{name:path}/pause")
async def pause_model(name: str, services: ServicesDep) -> dict[str, Any]:
    """Stop claims of the model's waiting jobs. Running jobs go on."""
    return await _pause(services, name, paused=True)


@router.post("/models/{name:path}/resume")
async def resume_model(name: str, services: ServicesDep) -> dict[str, Any]:
    return await _pause(services, name, paused=False)


@router.delete("/models/{name:path}")
async def forget_model(name: str, services: ServicesDep) -> dict[str, Any]:
    """Forget a model that is no longer served. It must have no workers, and no waiting or running jobs."""
    await services.model_registry.model(name)
    if in_use := await services.queue.forget_model(name):
        raise InvalidRequest(f"The model '{name}' is in use: {in_use}.", param="name")
    return {"id": name, "object": "model", "deleted": True}


async def _pause(services: Services, name: str, *, paused: bool) -> dict[str, Any]:
    await services.model_registry.model(name)
    await services.queue.pause(name, paused=paused)
    return {"model": name, "paused": paused}
