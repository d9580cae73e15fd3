"""A request to an upstream fails by one of these errors, whose class alone decides what the worker does next.

UpstreamError
├── UpstreamBusy     it has no room now: the job goes back to the queue, and its quota pauses
├── UpstreamBroken   it does not answer, or not as it should: the next URL is asked, and its breaker counts it
└── UpstreamRefused  the request is at fault: the same request would fail everywhere
"""

from shared.domain.errors import EngineError


class UpstreamError(EngineError):
    """`str(error)` continues a sentence that begins with the upstream's name. It never has a key in it."""


class UpstreamBusy(UpstreamError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamBroken(UpstreamError):
    """`final` if it has answered, and would answer the same again."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class UpstreamRefused(UpstreamError):
    def __init__(self, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
