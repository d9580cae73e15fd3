"""The run of a delivery, for a model that speaks tokens."""

import logging
from collections.abc import Callable

from shared.domain.errors import InvalidRequest
from shared.domain.job import Kind
from shared.queue.protocols import Delivery
from workers.process.time_limit import TimeLimitExceeded, time_limit
from workers.protocols import Model
from workers.runs.embedding import Embedding
from workers.runs.generation import Generation
from workers.runs.run import JobRun
from workers.runs.tokenization import Tokenization

log = logging.getLogger(__name__)
ENCODE_S_MAX = 30.0
REPLAY_S_MAX = 0.01  # for each event that earlier attempts wrote
RUNS: dict[Kind, Callable[[Delivery, Model], JobRun]] = {
    Kind.CHAT: Generation,
    Kind.COMPLETION: Generation,
    Kind.EMBEDDING: Embedding,
    Kind.TOKENS: Tokenization,
}


def begin(model: Model, delivery: Delivery) -> JobRun:
    """Encode the job's prompt and replay its log. Blocks. Raises InvalidRequest for a prompt that cannot be encoded, or
    not in time."""
    try:
        with time_limit(ENCODE_S_MAX + REPLAY_S_MAX * len(delivery.log)):
            run = RUNS[delivery.job.kind](delivery, model)
    except TimeLimitExceeded as error:
        raise InvalidRequest(f"The prompt takes more than {ENCODE_S_MAX:g} s to encode. Shorten it.") from error
    if run.dtype and run.dtype_before not in ("", run.dtype):
        log.warning(
            "an answer goes on in another number format; its text may differ from an uninterrupted one",
            extra={"job_id": delivery.job.id, "before": run.dtype_before, "now": run.dtype},
        )
    return run
