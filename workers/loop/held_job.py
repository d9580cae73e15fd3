"""A job that a worker holds, from its claim until it ends here, with all that the worker knows of it."""

import asyncio
import time
from collections.abc import Callable, Sequence

from shared.domain.events import Completed, Event, Finished
from shared.queue.protocols import Delivery
from workers.loop.attempt_trace import AttemptTrace
from workers.runs.run import JobRun


class HeldJob:
    """`run` is set once the engine has the job. `log` holds the events that are written or about to be, in case Redis
    loses the end of the log."""

    def __init__(self, delivery: Delivery, *, worker: str) -> None:
        self.delivery = delivery
        self.run: JobRun | None = None
        self.log: list[Event] = list(delivery.log)
        self._attempt = AttemptTrace(delivery, worker=worker)
        self._began = time.monotonic()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def taken_over(self) -> bool:
        return self.delivery.attempt > 1 or bool(self.delivery.log)

    def start(self, run: JobRun, overdue: Callable[[], None]) -> None:
        """Start the run deadline; `overdue` is called when it passes, unless the job is let go before."""
        self.run = run
        if self.delivery.left_ms is not None:
            left_s = self.delivery.left_ms / 1000 - (time.monotonic() - self._began)
            self._deadline = asyncio.get_running_loop().call_later(left_s, overdue)

    def wrote(self, events: Sequence[Event]) -> None:
        self.log.extend(events)
        self._attempt.wrote(events)

    def let_go(self, outcome: str, last: Event | None = None) -> None:
        """Note that the job is over here. `outcome` is named like in the metrics; `last` is the event that ended it, if
        it ended here."""
        self._attempt.ended(outcome, last)
        if self._deadline:
            self._deadline.cancel()

    def account(self, outcome: str, last: Finished) -> dict[str, object]:
        """The fields of the job's log line."""
        job, usage = self.delivery.job, last.outcome.usage if isinstance(last.outcome, Completed) else None
        return {
            "job_id": job.id,
            "model": job.model,
            "tenant": job.tenant,
            "attempt": self.delivery.attempt,
            "outcome": outcome,
            "waited_ms": round(self.delivery.waited_ms),
            "took_ms": round(1000 * (time.monotonic() - self._began)),
            "prompt_tokens": usage.prompt_tokens if usage else job.prompt_tokens_estimate,
            "output_tokens": usage.completion_tokens if usage else max(last.seq - 1, 0),
        } | ({"trace_id": self._attempt.trace_id} if self._attempt.trace_id else {})
