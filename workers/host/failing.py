"""The jobs of a model that cannot be loaded fail, with the reason."""

from collections.abc import Sequence

from shared.domain.events import Failed, Finished
from shared.queue.protocols import QueueConsumer, Write

AT_ONCE = 64
ROUNDS_MAX = 1000  # more than wait, unless clients are faster
CODE = "model_not_loaded"


async def fail_jobs(queue: QueueConsumer, names: Sequence[str], reason: str, *, worker: str) -> int:
    """Fail every waiting job of these models; return how many. Raises QueueUnavailable, and then some are left."""
    failed = 0
    for name in names:
        message = f"The model '{name}' could not be loaded: {reason}"
        for _ in range(ROUNDS_MAX):
            if not (claimed := await queue.claim(name, worker=worker, limit=AT_ONCE)):
                break
            for delivery in claimed:
                last = Finished(seq=len(delivery.log), outcome=Failed(code=CODE, message=message))
                await queue.settle(Write(delivery=delivery, events=(last,)), worker=worker)
            failed += len(claimed)
    return failed
