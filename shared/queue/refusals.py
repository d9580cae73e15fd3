"""The errors of jobs that the verb enqueue refuses, by its verdict."""

import math
import random

from shared.domain.errors import IdempotencyKeyReused, LimitReached, PenstockError, QueueFull, StorageFull
from shared.queue.protocols import RateLimits, StoredRecord

RETRY_AFTER_S = (1, 120)
JITTER = 0.25  # spreads the retries of clients that were refused together
REFUSALS = {
    "queue_full": "{ahead} jobs are waiting for model {model}, which is as many as may.",
    "queue_tokens_full": "The jobs that wait for model {model} are as large together as they may be.",
    "queue_bytes_full": "The requests that wait for model {model} have as many bytes together as they may.",
    "deadline_unreachable": "The job would wait about {wait_s:.0f} s for {model}, longer than its queue deadline.",
}
LIMITS = {
    "limit_requests": "The key's limit of {0.requests} requests a minute is reached.",
    "limit_tokens": "The key's limit of {0.tokens} tokens a minute is reached.",
    "limit_jobs": "The key has {0.jobs} jobs at a time already, which is as many as it may.",
    "quota": "The key's {0.month_tokens} tokens of this month are used up.",
}


def refusal_of(
    verdict: str, number: int, wait_s: float, *, model: str, rate_limits: RateLimits | None, record: StoredRecord | None
) -> PenstockError | None:
    """Return the error of a refused job, None for an accepted one. `number` counts jobs ahead, or bytes stored."""
    if verdict == "reused":
        return IdempotencyKeyReused("This Idempotency-Key came before with another body.")
    if verdict == "storage_full" and record:
        return StorageFull(used=number, bytes_max=record.tenant_bytes_max)
    if verdict in LIMITS:
        return LimitReached(LIMITS[verdict].format(rate_limits), limit=verdict, retry_after_s=math.ceil(wait_s))
    if verdict in REFUSALS:
        return QueueFull(
            REFUSALS[verdict].format(ahead=number, model=model, wait_s=wait_s),
            reason=verdict,
            position=number + 1,
            wait_s=wait_s,
            retry_after_s=retry_after_s(wait_s),
        )
    return None


def later(full: QueueFull, load_s: float) -> QueueFull:
    """Return the refusal with the wait for a model that must be loaded first."""
    wait_s = full.wait_s + load_s
    retry_s = retry_after_s(wait_s) if load_s else full.retry_after_s
    return QueueFull(str(full), reason=full.reason, position=full.position, wait_s=wait_s, retry_after_s=retry_s)


def retry_after_s(wait_s: float) -> int:
    """Estimate when the jobs that wait now are served, in whole seconds within `RETRY_AFTER_S`."""
    low, high = RETRY_AFTER_S
    return min(high, max(low, round(wait_s * random.uniform(1, 1 + JITTER))))
