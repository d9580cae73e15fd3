"""Anthropic's clients read the shape of errors and the header of the request's id otherwise than OpenAI's.
(platform.claude.com/docs/en/api/errors)"""

from typing import Any

from starlette.types import Scope

MESSAGES = "/v1/messages"
VERSION_HEADER = b"anthropic-version"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# What the Messages API calls the parameters and the content of the chat that is made of a request.
SENT_AS = {
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "image_url": "image",
    "file": "document",
}


def speaks_anthropic(scope: Scope) -> bool:
    """Return whether the request is one of Anthropic's API: by its path, or by the header that such clients send."""
    path: str = scope["path"]
    if path == MESSAGES or path.startswith(MESSAGES + "/"):
        return True
    return any(name == VERSION_HEADER for name, _ in scope["headers"])


def error_body(scope: Scope, status: int, code: str, message: str) -> dict[str, Any]:
    request_id = scope.get("state", {}).get("request_id")
    return {"type": "error", "error": error_object(status, code, message), "request_id": request_id}


def error_object(status: int, code: str, message: str) -> dict[str, Any]:
    """Return the error, with the names that the client sent. Claude Code shortens its conversation when it reads that
    the prompt is too long."""
    for name, sent in SENT_AS.items():
        message = message.replace(f"'{name}'", f"'{sent}'")
    if code == "context_length_exceeded":
        message = f"prompt is too long: {message}"
    usual = "invalid_request_error" if status < 500 else "api_error"
    return {"type": TYPES.get(status, usual), "message": message}
