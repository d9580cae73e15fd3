"""Routes whose bodies are strict JSON: no lone surrogates, no NaN, no unbounded nesting. A request that is refused for
its own fault counts against its key's requests a minute.

A small body can hold a great many values, and each costs a hundred times its bytes as a Python object. So the raw bytes
are counted first, which takes milliseconds; a body that passes is cheap to parse, and the schemas bound each of its
lists. A large body is parsed and validated off the event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from api.http.auth import Authenticator
from api.http.problems import Refused, validation_problem
from shared.domain.errors import Forbidden, IdempotencyKeyReused, InvalidRequest, NotFound

AT_FAULT = (InvalidRequest, NotFound, Forbidden, IdempotencyKeyReused, HTTPException)
Body = TypeVar("Body", bound=BaseModel)
AT_ONCE = 2  # large bodies, which bounds their memory
LARGE_BYTES = 32_768
DEPTH_MAX = 100
CONTAINERS_MAX = 50_000  # objects and arrays
STRINGS_MAX = 200_000  # names of fields included
VALUES_MAX = 1_000_000
BRACKETS = b"[]{}"
EVERYTHING_ELSE = bytes(set(range(256)) - set(BRACKETS))


class JsonRoute(APIRoute):
    """Reads the body before FastAPI does, by the `authenticator` and the `bodies` of the app's services. A body with a
    default may be missing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]
        optional = not self.body_field.field_info.is_required()

        async def handle(request: Request) -> Response:
            services = request.app.state.services
            authenticator: Authenticator = services.authenticator
            caller = getattr(request.state, "caller", None)
            if caller:
                authenticator.require_open(caller)
            if optional and not await request.body():
                return await handler(request)
            try:
                made = await _read(services.bodies, request, model)
            except (Refused, *AT_FAULT):
                await authenticator.charge(caller)
                raise
            try:
                return await handler(made)
            except AT_FAULT:  # not Refused, which a job raises after it has counted as a request
                await authenticator.charge(caller)
                raise

        return handle


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


async def _read(bodies: "BodyReader", request: Request, model: type[BaseModel]) -> Request:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("application/") or not kind.endswith(("/json", "+json")):
        raise InvalidRequest("The header 'Content-Type: application/json' is expected.", param="Content-Type")
    data = await request.body()
    return ReadRequest(request, data, await bodies.read(data, model))


class BodyReader:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bodies")

    async def read(self, data: bytes, model: type[Body]) -> Body:
        """Parse and validate a body. Raises InvalidRequest or Refused."""
        if len(data) < LARGE_BYTES:
            return read(data, model)
        return await asyncio.get_running_loop().run_in_executor(self._threads, read, data, model)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def read(data: bytes, model: type[Body]) -> Body:
    require_bounded(data)
    try:
        return model.model_validate(orjson.loads(data))
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is not valid JSON.") from None
    except ValidationError as error:
        raise Refused(validation_problem(error)) from None


def require_bounded(data: bytes) -> None:
    """Raise InvalidRequest for a body of too many or too deeply nested values. Most bodies pass after three counts of
    their bytes, which are never below the counts of their values."""
    if _containers(data) <= DEPTH_MAX and data.count(b",") <= VALUES_MAX and data.count(b'"') <= STRINGS_MAX:
        return
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    _require("strings and names of fields", unescaped.count(b'"') // 2, STRINGS_MAX)
    bare = b"".join(unescaped.split(b'"')[::2])
    _require("objects and arrays", _containers(bare), CONTAINERS_MAX)
    _require("values", bare.count(b","), VALUES_MAX)
    _require("objects and arrays within each other", _depth(bare.translate(None, EVERYTHING_ELSE)), DEPTH_MAX)


def _require(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"The body has {count} {what}; at most {most} are read. Send less in one request.")


def _containers(data: bytes) -> int:
    return data.count(b"{") + data.count(b"[")


def _depth(brackets: bytes) -> int:
    """Return the most brackets that are open at a time."""
    deepest = depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
