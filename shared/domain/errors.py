"""Every error that Penstock raises on purpose.

    PenstockError
    ├── SettingsError            a setting cannot be used; names it
    ├── InvalidRequest           the request is wrong; names the parameter
    │   ├── ContextLengthExceeded
    │   └── FileInUse            a batch that has not ended reads the file; names the batch
    ├── NotFound                 no such model, job or route
    ├── QueueFull                the model's queue has no room; says why and when to try again
    ├── StorageFull              a tenant has stored as many bytes as it may
    │   └── FilesFull            the same for its files
    ├── LimitReached             an API key is at a limit; says which, and when to try again
    ├── Forbidden                the key may not do this
    ├── IdempotencyKeyReused     the key was used before, with another body
    ├── QueueUnavailable         Redis does not answer, or refuses writes
    ├── DecodeError              bytes from Redis are not what this version writes
    └── EngineError              the engine could not do its part of a job

Library errors are translated where the library is called; the API maps these to HTTP in `api.http.problems`.
"""


class PenstockError(Exception):
    """The root; `str(error)` is one sentence for a person."""


class SettingsError(PenstockError):
    pass


class InvalidRequest(PenstockError):
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ConversationLocked(InvalidRequest):
    """A response of the conversation has not ended."""

    code = "conversation_locked"


class InputFlagged(InvalidRequest):
    """The moderation server flags the input."""

    code = "content_policy_violation"


class FileInUse(InvalidRequest):
    code = "file_in_use"


class NotFound(PenstockError):
    def __init__(self, message: str, *, code: str = "not_found", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class QueueFull(PenstockError):
    """The model's queue has no room. `reason` is a slug. `position` is where the job would have stood. `wait_s` is how
    long it would have waited by the measured throughput, or 0; `retry_after_s` is the same within 1 to 120 seconds."""

    def __init__(self, message: str, *, reason: str, position: int, wait_s: float, retry_after_s: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.position = position
        self.wait_s = wait_s
        self.retry_after_s = retry_after_s


class LimitReached(PenstockError):
    """An API key is at a limit: limit_requests, limit_tokens or limit_jobs, which pass, or quota, which lasts the
    month.
    """

    def __init__(self, message: str, *, limit: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s


class StorageFull(PenstockError):
    """A tenant has stored `used` of its `bytes_max` bytes, and the new record does not fit."""

    param = "store"

    def __init__(self, *, used: int, bytes_max: int) -> None:
        super().__init__(
            f"Stored responses and chat completions take {used} of the {bytes_max} bytes that they may, and this one "
            "does not fit beside them. Delete some of them, or send 'store': false."
        )
        self.used = used
        self.bytes_max = bytes_max


class FilesFull(StorageFull):
    param = "file"

    def __init__(self, *, used: int, bytes_max: int, size: int) -> None:
        PenstockError.__init__(
            self,
            f"The files of this key take {used} of the {bytes_max} bytes that they may, and a file of {size} bytes "
            "does not fit beside them. Delete files that are no longer needed (DELETE /v1/files/{file_id}), or let "
            "them expire.",
        )
        self.used = used
        self.bytes_max = bytes_max


class ModerationUnavailable(PenstockError):
    """The moderation server gives no answer."""


class NoVerdict(ModerationUnavailable):
    """The moderation server answers, but judges nothing; it would do so again."""


class Forbidden(PenstockError):
    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class IdempotencyKeyReused(PenstockError):
    pass


class QueueUnavailable(PenstockError):
    pass


class Stopping(QueueUnavailable):
    """The process is about to end; the job runs on, and another process can read its events."""


class DecodeError(PenstockError):
    pass


class EngineError(PenstockError):
    pass
