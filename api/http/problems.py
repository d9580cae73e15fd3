"""Translates errors into answers: one table of statuses, and one shape of body for each API."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.http.anthropic import error_body, speaks_anthropic
from shared.domain import errors
from shared.domain.events import Cancelled, Completed, Deadline, Expired, Failed, Outcome

# The status of every code that an outcome or an error can carry. Clients retry 408, 409, 429 and 5xx.
STATUS = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "permission_denied": 403,
    "content_policy_violation": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "deadline_exceeded": 408,
    "cancelled": 409,
    "conversation_locked": 409,
    "file_in_use": 409,
    "request_too_large": 413,
    "websocket_not_served": 426,
    "idempotency_key_reused": 422,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "queue_full": 429,
    "queue_tokens_full": 429,
    "queue_bytes_full": 429,
    "storage_full": 429,
    "deadline_unreachable": 429,
    "redis_memory": 429,
    "engine_error": 500,
    "poison": 500,
    "job_lost": 500,
    "internal_error": 500,
    "upstream_lost": 502,
    "model_not_loaded": 503,
    "moderation_unavailable": 503,
    "redis_unavailable": 503,
    "shutting_down": 503,
}
DROPPED = frozenset({408, 413, 429, 503})  # nothing was done, though the request may be right
BRANCHES = frozenset({"str", "int", "float", "bool", "constrained-str", "TypedGrammar"})
MESSAGE_MAX, PARAM_MAX = 4000, 200  # characters, since both may quote the client's text
RETRY_AFTER_MAX_S = 120  # clients ignore a longer one
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return STATUS[self.code]

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        code = None if self.code == "invalid_request" else self.code
        about = {"message": _short(self.message, MESSAGE_MAX), "param": self.param and _short(self.param, PARAM_MAX)}
        return {"error": {**about, "type": kind, "code": code} | self.more}

    def response(self, scope: Scope) -> JSONResponse:
        """Return the answer in the shape that the request's client reads."""
        reason = {"x-penstock-dropped-reason": self.code} if self.status in DROPPED else {}
        body = self.body
        if speaks_anthropic(scope):
            body = error_body(scope, self.status, self.code, body["error"]["message"])
        return JSONResponse(body, status_code=self.status, headers=reason | self.headers)


class Refused(Exception):
    """Carries a problem out of a route, which answers with it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: errors.PenstockError) -> Problem:
    match error:
        case errors.FileInUse():  # clients would try a 409 again at once, in vain
            headers = {"x-should-retry": "false"}
            return Problem(code="file_in_use", message=str(error), param=error.param, headers=headers)
        case errors.InvalidRequest():
            return Problem(code=error.code or "invalid_request", message=str(error), param=error.param)
        case errors.NotFound():
            return Problem(code=error.code, message=str(error), param=error.param)
        case errors.QueueFull():
            headers = {
                "retry-after": str(error.retry_after_s),
                "x-penstock-queue-position": str(error.position),
                "x-penstock-estimated-wait-s": f"{error.wait_s:.1f}",
            }
            more = {
                "position": error.position,
                "estimated_wait_s": round(error.wait_s, 1),
                "retry_after_s": error.retry_after_s,
            }
            return Problem(code=error.reason, message=str(error), headers=headers, more=more)
        case errors.StorageFull():
            headers = {"x-should-retry": "false"}
            return Problem(code="storage_full", message=str(error), param=error.param, headers=headers)
        case errors.LimitReached(limit="quota"):
            return Problem(code="insufficient_quota", message=str(error), headers={"x-should-retry": "false"})
        case errors.LimitReached():
            headers = {"retry-after": str(min(max(error.retry_after_s, 1), RETRY_AFTER_MAX_S))}
            return Problem(code="rate_limit_exceeded", message=str(error), headers=headers)
        case errors.Forbidden():
            return Problem(code="permission_denied", message=str(error), param=error.param)
        case errors.IdempotencyKeyReused():
            return Problem(code="idempotency_key_reused", message=str(error), param="Idempotency-Key")
        case errors.Stopping():
            message = (
                "This process stops before the answer is whole. Ask again: with an Idempotency-Key, its job runs on."
            )
            return Problem(code="shutting_down", message=message, headers={"retry-after": "1"})
        case errors.ModerationUnavailable():
            return Problem(code="moderation_unavailable", message=str(error), headers={"retry-after": "1"})
        case errors.QueueUnavailable():
            message = "The queue cannot be reached at the moment; nothing was accepted."
            return Problem(code="redis_unavailable", message=message, headers={"retry-after": "1"})
        case _:
            return Problem(code="internal_error", message="An internal error occurred; the server's log has details.")


def problem_of_outcome(outcome: Outcome) -> Problem | None:
    """Return the problem of a job's outcome; None for a completed job."""
    match outcome:
        case Completed():
            return None
        case Failed(code=code):
            known = code if code in STATUS else "internal_error"
            return Problem(code=known, message=outcome.message, param=outcome.param)
        case Cancelled():
            return Problem(code="cancelled", message="The job was cancelled.", headers={"x-should-retry": "false"})
        case Expired(deadline=Deadline.QUEUE):
            return Problem(code="deadline_exceeded", message="No worker had room before the queue deadline.")
        case Expired():
            return Problem(code="deadline_exceeded", message="The answer was not complete before the run deadline.")
        case _:
            assert_never(outcome)


def install(app: FastAPI) -> None:
    """Answer every error in its shape: Penstock's own, those of validation and routing, and unexpected ones."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.PenstockError)
        return problem_of(error).response(request.scope)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return error.problem.response(request.scope)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_problem(error).response(request.scope)

    async def routing(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _routing_problem(error).response(request.scope)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return problem_of(errors.PenstockError()).response(request.scope)

    app.add_exception_handler(errors.PenstockError, ours)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)


def validation_problem(error: RequestValidationError | ValidationError) -> Problem:
    """Report the most deeply nested of several errors: a value that may have several types fails as each of them. At
    equal depth a check of our own comes first, since it says more than a wrong type."""
    first = max(_errors(error), key=lambda each: (len(_place(each["loc"])), each["type"] == "value_error"))
    if first["type"] == "json_invalid":
        return Problem(code="invalid_request", message="The body is not valid JSON.")
    place = _place(first["loc"])
    if isinstance(error, RequestValidationError):
        place = place[1:]  # FastAPI begins with the part of the request
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return Problem(code="invalid_request", message=f"Unknown parameter: '{param}'.", param=param)
    if first["type"] == "missing":
        return Problem(code="invalid_request", message=f"Missing required parameter: '{param}'.", param=param)
    name = f"'{param}'" if param else "the body"
    reason = first["msg"].removeprefix("Value error, ")
    return Problem(code="invalid_request", message=f"Invalid value for {name}: {reason}.", param=param)


def _errors(error: RequestValidationError | ValidationError) -> Sequence[Any]:
    """Return the errors without the client's input, which may be large."""
    if isinstance(error, ValidationError):
        return error.errors(include_url=False, include_context=False, include_input=False)
    return error.errors()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + ".."


def _place(loc: tuple[int | str, ...]) -> list[str]:
    """Return the path to the parameter, without the types that pydantic tried."""
    return [str(part) for part in loc if isinstance(part, int) or not (part in BRANCHES or "[" in part)]


def _routing_problem(error: HTTPException) -> Problem:
    code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code)
    if code is None:
        code = "invalid_request" if error.status_code < 500 else "internal_error"
    message = "There is no such route here." if code == "not_found" else str(error.detail)
    return Problem(code=code, message=message, headers=dict(error.headers or {}))
