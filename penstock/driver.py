"""Drives a runner without a queue: gives it jobs, and keeps the events that it puts into its outbox."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from shared.domain.events import CallPart, Completed, Delta, Event, Finished, Outcome, Usage
from shared.domain.job import Job, Kind, Sampling
from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import Delivery
from workers.loading.loaded import Loaded
from workers.runners.outbox import Outbox
from workers.runs.run import JobRun

STEPS_MAX = 64
_numbers = itertools.count()


class Attempt:
    """One delivery of a job at the runner, with the events that came of it so far."""

    def __init__(self, delivery: Delivery, run: JobRun, seconds_max: float) -> None:
        self.delivery = delivery
        self.run = run
        self.events: list[Event] = []
        self.put_back = False
        self.first_delta_at: float | None = None
        self.ended_at: float | None = None
        self._seconds_max = seconds_max
        self._arrived = threading.Condition()

    def add(self, events: Sequence[Event], *, put_back: bool = False) -> None:
        with self._arrived:
            self.events += events
            self.put_back |= put_back
            if self.ended:
                self.ended_at = time.monotonic()
            if self.first_delta_at is None and any(isinstance(event, Delta) for event in events):
                self.first_delta_at = time.monotonic()
            self._arrived.notify_all()

    def wait(self, *, deltas: int = 10**9) -> "Attempt":
        """Wait until that many deltas came, or the last event. Raises AssertionError if it takes too long."""
        return self._wait(lambda: self.ended or len(self._deltas(None)) >= deltas)

    def wait_put_back(self) -> "Attempt":
        """Wait until the job is given back to the queue."""
        return self._wait(lambda: self.put_back)

    def _wait(self, truth: Callable[[], bool]) -> "Attempt":
        with self._arrived:
            came = self._arrived.wait_for(truth, self._seconds_max)
        assert came, f"not within {self._seconds_max} s; there are {len(self.events)} events"
        return self

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished)

    @property
    def begins(self) -> bool:
        """True if earlier attempts said nothing."""
        return not any(isinstance(event, Delta) for event in self.delivery.log)

    @property
    def log(self) -> list[Event]:
        """The events of all attempts."""
        return [*self.delivery.log, *self.events]

    @property
    def outcome(self) -> Outcome:
        last = self.wait().events[-1]
        assert isinstance(last, Finished)
        return last.outcome

    @property
    def usage(self) -> Usage:
        outcome = self.outcome
        assert isinstance(outcome, Completed), outcome
        return outcome.usage

    def said(self, choice: int = 0) -> str:
        """All that a choice says: reasoning, text and calls."""
        deltas = self._deltas(choice)
        calls = [part for delta in deltas for part in delta.calls]
        return "".join([*(d.reasoning for d in deltas), *(d.text for d in deltas), *map(_shown, calls)])

    def reason(self, choice: int = 0) -> str | None:
        return self._deltas(choice)[-1].finish_reason

    def ids(self) -> list[int]:
        return [token for delta in self._deltas(None) for token in delta.token_ids]

    def _deltas(self, choice: int | None) -> list[Delta]:
        events = self.events if choice is None else self.log
        return [event for event in events if isinstance(event, Delta) and choice in (None, event.choice)]


class Driver:
    """Runs one runner. Its tests are synchronous: an event loop of the driver's own takes from the outbox."""

    def __init__(self, loaded: Loaded, *, seconds_max: float = 30.0) -> None:
        self.loaded = loaded
        self.model = loaded.infos[0].name
        self.resume = loaded.infos[0].resume
        self.metrics = WorkerMetrics()
        self.more_places = threading.Event()
        self._seconds_max = seconds_max
        self._attempts: dict[JobRun, Attempt] = {}
        self._loop = asyncio.new_event_loop()
        self._taking = threading.Event()
        self._taking.set()
        self._outbox = Outbox(self._loop, steps_max=STEPS_MAX)
        self.runner = loaded.make_runner(self._outbox, self.metrics, self.more_places.set)
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()
        self.runner.start()

    def start(self, job: Job, log: Sequence[Event] = (), *, isolated: bool = False) -> Attempt:
        """Give a job to the runner, after what earlier attempts logged. Raises InvalidRequest as a worker would."""
        delivery = Delivery(job=job, claim_token=job.id, attempt=2 if log else 1, log=tuple(log), isolated=isolated)
        run = self.loaded.begin(delivery)
        attempt = self._attempts[run] = Attempt(delivery, run, self._seconds_max)
        attempt.add(run.opening())
        self.runner.add(run)
        return attempt

    def chat(self, prompt: str, *, n: int = 1, max_tokens: int | None = None, stop: Sequence[str] = ()) -> Job:
        """A greedy chat."""
        return Job(
            id=f"chatcmpl-driver{next(_numbers)}",
            model=self.model,
            kind=Kind.CHAT,
            request={"messages": [{"role": "user", "content": prompt}]},
            sampling=Sampling(seed=7, temperature=0, n=n, max_tokens=max_tokens, stop=tuple(stop)),
            created_ms=0,
            queue_deadline_ms=60_000,
            run_deadline_ms=0,
        )

    def pause(self) -> None:
        """Take nothing more from the outbox, as a worker whose Redis is away."""
        self._taking.clear()

    def go_on(self) -> None:
        self._taking.set()

    @property
    def running(self) -> float:
        """The sequences at the runner, as its metric says."""
        return self.metrics.registry.get_sample_value("penstock_running_sequences", {"model": self.model}) or 0

    def eventually(self, truth: Callable[[], object]) -> bool:
        """Poll for what gives no event to wait for."""
        deadline, pause = time.monotonic() + self._seconds_max, threading.Event()
        while not truth():
            if time.monotonic() > deadline:
                return False
            pause.wait(0.01)
        return True

    def stop(self) -> "Future[None]":
        return self.runner.stop()

    def close(self) -> None:
        """Stop the runner. Raises TimeoutError if it does not end, and whatever ended it before."""
        self.go_on()
        try:
            self.stop().result(self._seconds_max)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Take no more events, whatever the runner does; a second call does nothing. What was loaded is closed, unless
        the runner still computes with it."""
        if not self._thread.is_alive():
            return
        ended, _ = wait([self.stop()], self._seconds_max)
        self._loop.call_soon_threadsafe(self._outbox.close)
        self._thread.join(self._seconds_max)
        if ended:
            self.loaded.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._take())
        self._loop.close()

    async def _take(self) -> None:
        while updates := await self._outbox.take():
            await asyncio.to_thread(self._taking.wait)
            for update in updates:
                self._attempts[update.run].add(update.events, put_back=update.put_back)


def _shown(part: CallPart) -> str:
    return f"[{part.call} {part.name} {part.arguments}]"
