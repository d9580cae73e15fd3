"""The jobs that a worker holds, each from its claim until it ends here or is lost, and their leases."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from shared.domain.events import Completed, Deadline, Event, Expired, Failed, Finished
from shared.domain.job import Job
from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import Delivery, QueueConsumer
from workers.loop.attempt_trace import AttemptTrace
from workers.runners.base import Runner
from workers.runs.run import JobRun

log = logging.getLogger(__name__)


class HeldJob:
    """`run` is set once the runner has the job. `log` holds the events that are written or about to be, in case Redis
    loses the end of the log."""

    def __init__(self, delivery: Delivery, runner: Runner, *, worker: str) -> None:
        self.delivery = delivery
        self.runner = runner
        self.run: JobRun | None = None
        self.log: list[Event] = list(delivery.log)
        self._attempt = AttemptTrace(delivery, worker=worker)
        self._began = time.monotonic()
        self._deadline: asyncio.TimerHandle | None = None

    def start(self, run: JobRun) -> None:
        """Note the run and start its deadline, which ends it unless the job is let go before."""
        self.run = run
        if self.delivery.left_ms is not None:
            left_s = self.delivery.left_ms / 1000 - (time.monotonic() - self._began)
            overdue = Expired(deadline=Deadline.RUN)
            self._deadline = asyncio.get_running_loop().call_later(left_s, self.runner.end, run, overdue)

    def wrote(self, events: Sequence[Event]) -> None:
        self.log.extend(events)
        self._attempt.wrote(events)

    def stop_computing(self) -> None:
        if self.run:
            self.runner.drop(self.run)

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


class HeldJobs:
    """Every job of a worker. A job is known by its claim: the same job claimed again is another held job."""

    def __init__(self, worker: str, queue: QueueConsumer, metrics: WorkerMetrics, *, lease_ms: int) -> None:
        self._worker = worker
        self._queue = queue
        self._metrics = metrics
        self._lease_s = lease_ms / 1000
        self._renewed_at = asyncio.get_running_loop().time()
        self._jobs: dict[str, HeldJob] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[HeldJob]:
        return iter(self._jobs.values())

    def hold(self, delivery: Delivery, runner: Runner) -> None:
        """Note a job that was just claimed."""
        job = delivery.job
        self._jobs[job.id] = HeldJob(delivery, runner, worker=self._worker)
        if delivery.attempt > 1 or delivery.log:
            self._metrics.redelivered.labels(job.model).inc()
            about = {"job_id": job.id, "model": job.model, "attempt": delivery.attempt, "events": len(delivery.log)}
            log.info("job taken over", extra=about)
        else:
            self._metrics.queued.labels(job.model, job.priority).observe(delivery.waited_ms / 1000)

    def by_id(self, job_id: str) -> HeldJob | None:
        return self._jobs.get(job_id)

    def of(self, delivery: Delivery) -> HeldJob | None:
        """The held job; None if this worker has it no longer, or by another claim."""
        held = self._jobs.get(delivery.job.id)
        return held if held and held.delivery is delivery else None

    def run_by(self, runner: Runner) -> list[Job]:
        return [held.delivery.job for held in self if held.runner is runner]

    @property
    def leases_are_fresh(self) -> bool:
        """True while no lease can have lapsed, as far as this process knows."""
        return asyncio.get_running_loop().time() - self._renewed_at < self._lease_s

    async def renew_leases(self) -> None:
        """Renew every lease; lose the jobs that Redis no longer counts as this worker's. Raises QueueUnavailable."""
        deliveries = [held.delivery for held in self]
        lost = set(await self._queue.renew(deliveries, worker=self._worker))
        self._renewed_at = asyncio.get_running_loop().time()
        for delivery in deliveries:
            if delivery.job.id in lost:
                self.lose(delivery, found="renewal")

    def lose(self, delivery: Delivery, *, found: str) -> None:
        """Give up a job that another worker has or that was cancelled: its run stops before the next step. `found` says
        how the loss was noticed."""
        if held := self.of(delivery):
            held.stop_computing()
            self._metrics.lost.labels(delivery.job.model, found).inc()
            held.let_go("cancelled" if found == "cancelled" else "lost")
            self._remove(delivery)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Hand jobs back to the queue, with their logs. Raises QueueUnavailable, and then still holds them."""
        held = [each for each in map(self.of, deliveries) if each]
        if held:
            await self._queue.release([each.delivery for each in held], worker=self._worker)
        for each in held:
            each.let_go("released")
            if self.of(each.delivery):
                self._remove(each.delivery)

    def end(self, delivery: Delivery, last: Finished) -> None:
        """Count and log the end of a job that has been settled, and forget it."""
        model, outcome = delivery.job.model, type(last.outcome).__name__.lower()
        self._metrics.jobs.labels(model, outcome).inc()
        if isinstance(last.outcome, Completed):
            self._metrics.cost.labels(model).inc(last.outcome.usage.cost_micros / 1_000_000)
        if isinstance(last.outcome, Failed):
            self._metrics.failed.labels(model, last.outcome.code).inc()
        if held := self.of(delivery):
            log.info("job ended", extra=held.account(outcome, last))
            held.let_go(outcome, last)
            self._remove(delivery)
        self.wake()

    def _remove(self, delivery: Delivery) -> None:
        del self._jobs[delivery.job.id]
        self.wake()

    def wake(self) -> None:
        """Wake those that wait for a change: a job has left, there are more places, or the worker stops."""
        self._changed.set()

    async def changed(self, *, longest_s: float) -> None:
        """Wait for the next change, but at most `longest_s`."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):  # wait_for would lose a cancellation that comes with the change
                await self._changed.wait()
