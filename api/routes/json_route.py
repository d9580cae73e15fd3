"""Routes whose bodies are strict JSON: no lone surrogates, no NaN, no unbounded nesting. A request that is refused for
its own fault counts against its key's requests a minute."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from api.http.auth import Caller
from api.http.problems import Refused
from api.serving.services import Services, services_of
from shared.domain.errors import Forbidden, IdempotencyKeyReused, InvalidRequest, NotFound, QueueUnavailable

AT_FAULT = (InvalidRequest, NotFound, Forbidden, IdempotencyKeyReused, HTTPException)


class ReadRequest(Request):
    """A request whose body is already the validated model, so that FastAPI has nothing left to do."""

    def __init__(self, request: Request, data: bytes, model: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._data = data
        self._model = model

    async def body(self) -> bytes:
        return self._data

    async def json(self) -> BaseModel:
        return self._model


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            services = await services_of(request)
            _require_open(services, request)
            try:
                made = await _read(services, request, model)
            except (Refused, *AT_FAULT):
                await _charge(services, request)
                raise
            try:
                return await handler(made)
            except AT_FAULT:  # not Refused, which a job raises after it has counted as a request
                await _charge(services, request)
                raise

        return handle


async def _read(services: Services, request: Request, model: type[BaseModel]) -> Request:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("application/") or not kind.endswith(("/json", "+json")):
        raise InvalidRequest("The header 'Content-Type: application/json' is expected.", param="Content-Type")
    data = await request.body()
    return ReadRequest(request, data, await services.bodies.read(data, model))


def _require_open(services: Services, request: Request) -> None:
    """Raise LimitReached if the caller's requests of this minute are used up."""
    if caller := getattr(request.state, "caller", None):
        services.authenticator.require_open(caller)


async def _charge(services: Services, request: Request) -> None:
    caller: Caller | None = getattr(request.state, "caller", None)
    rate_limits = services.authenticator.rate_limits(caller) if caller else None
    if caller and rate_limits and rate_limits.requests:
        with suppress(QueueUnavailable):
            services.authenticator.close(caller, await services.queue.charge(caller.tenant, rate_limits))
