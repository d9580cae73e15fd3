"""The outcome of a job that failed in the engine's thread."""

import traceback

from shared.domain.errors import InvalidRequest
from shared.domain.events import Failed


def engine_failed(error: Exception) -> Failed:
    return _engine_error(f"The engine failed: {error}", error)


def unreadable(error: Exception) -> Failed:
    """The answer cannot be read; that is the client's fault if its grammar is the cause."""
    if isinstance(error, InvalidRequest):
        return Failed(code=error.code or "invalid_request", message=str(error), param=error.param)
    return _engine_error(f"The answer cannot be read: {error}", error)


def _engine_error(message: str, error: Exception) -> Failed:
    return Failed(code="engine_error", message=message, detail="".join(traceback.format_exception(error)))
