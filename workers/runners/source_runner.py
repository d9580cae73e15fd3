"""The source runner asks a source for the parts of its runs, a task for each, and delivers their events.

Its event loop is not the worker's: a source that blocks would stop the worker's heartbeats, and with them the leases of
all its jobs. A plain generator runs in a thread, one for each part that is computed at the time.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from shared.domain.errors import InvalidRequest
from shared.domain.events import Event, Failed, Outcome
from shared.observability.metrics import WorkerMetrics
from workers.process.single_thread import SingleThread
from workers.protocols import EngineBroken
from workers.runners.base import Runner
from workers.runners.engine_thread import engine_failed, refused
from workers.runners.outbox import Outbox, Update
from workers.runs.run import JobRun
from workers.runs.source_run import SourceRun
from workers.source import AnswerLost, Busy, ChatSource

log = logging.getLogger(__name__)
UPDATES_MAX = 1024  # written, but not in the outbox yet; tasks wait beyond
GATHER_S = 0.01
SLICE_S = 0.005  # longest time in which a source that never waits keeps others from the loop
BUSY_S_MAX = 600.0
CLOSE_S = 5.0
Result = TypeVar("Result")


class SourceRunner(Runner):
    def __init__(
        self,
        model: str,
        source: ChatSource,
        loop: asyncio.AbstractEventLoop,
        thread: SingleThread,
        *,
        sequences_max: int,
        gather_s: float,
        outbox: Outbox,
        metrics: WorkerMetrics,
        more_places: Callable[[], None],
    ) -> None:
        """`loop` runs in `thread`, and the source was opened in it. `gather_s` is the time between two deliveries that
        no answer's first words are in. `waiting` and `places` are as a Runner has them: while the source is busy, there
        is no place."""
        self.waiting = 0
        self.places = sequences_max
        self._sequences_max = sequences_max
        self._gather_s = gather_s
        self._source = source
        self._loop = loop
        self._thread = thread
        self._outbox = outbox
        self._more_places = more_places
        self._running = metrics.running.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._tokens = metrics.tokens.labels(model)
        self._faults = metrics.faults.labels(model)
        self._parts = Parts(sequences_max)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[tuple[SourceRun, int], asyncio.Task[None]] = {}
        self._busy_until = 0.0
        self._pending: list[Update] = []
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._delivered_at = float("-inf")
        self._delivered = asyncio.Event()
        self._stopping = asyncio.Event()
        self._threads: list[SingleThread] = []  # idle ones, for plain generators
        self._asked_at: float | None = None
        self._ended: Future[None] = Future()

    def start(self) -> None:
        self._ended = self._thread.submit(self._run)

    def add(self, run: JobRun) -> None:
        self._call(self._add, run)

    def drop(self, run: JobRun) -> None:
        self._call(self._drop, run)

    def end(self, run: JobRun, outcome: Outcome) -> None:
        self._call(self._end, run, outcome)

    def stop(self) -> Future[None]:
        self._call(self._stopping.set)
        return self._ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """False if the loop has not answered for that long, since a source blocks it, or has ended."""
        if self._ended.done():
            return False
        if (asked_at := self._asked_at) is None:
            self._asked_at = asked_at = time.monotonic()
            self._call(self._answer)
        return time.monotonic() - asked_at < step_timeout_s

    def _call(self, verb: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing is computed any more
            self._loop.call_soon_threadsafe(verb, *args)

    def _answer(self) -> None:
        self._asked_at = None

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _serve(self) -> None:
        """Compute until it is told to stop. Raises EngineBroken if the source says that it is broken, and any error of
        its `watch`."""
        try:
            async with asyncio.TaskGroup() as self._group:
                beside = [self._group.create_task(self._deliver()), self._group.create_task(self._source.watch())]
                self._fill()
                await self._stopping.wait()
                for task in (*self._tasks.values(), *beside):
                    task.cancel()
            if self._pending:
                self._outbox.put_if_room(self._pending)
        except* Exception:
            log.critical("the source is lost", exc_info=True)
            raise
        finally:
            await self._close_source()

    async def _close_source(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._source.close()
        except Exception:
            log.warning("a source failed to close", exc_info=True)

    def _add(self, run: JobRun) -> None:
        if run.done:
            return
        assert isinstance(run, SourceRun), f"nobody computes a {type(run).__name__}"
        self._parts.add(run)
        self._fill()

    def _drop(self, run: JobRun) -> None:
        run.ended = True  # a source that goes on all the same is not heard
        if isinstance(run, SourceRun):
            for part in self._parts.drop(run):
                if (task := self._tasks[run, part]) is not asyncio.current_task(self._loop):
                    task.cancel()
            self._fill()

    def _end(self, run: JobRun, outcome: Outcome) -> None:
        if not run.ended:
            events: list[Event] = [run.finish(outcome)]
            self._drop(run)
            self._put(Update(run, events))

    def _fill(self) -> None:
        """Begin the parts that have a place."""
        if self._group is None or self._stopping.is_set():
            return
        while (begun := self._parts.next()) is not None:
            task = self._tasks[begun] = self._group.create_task(self._compute(*begun))
            task.add_done_callback(partial(self._free, *begun))  # a task that is cancelled at once never runs
        self._count()

    def _free(self, run: SourceRun, part: int, task: asyncio.Task[None]) -> None:
        del self._tasks[run, part]
        self._parts.free(run, part)
        self._tokens.inc(run.tokens(part))
        self._fill()

    def _count(self) -> None:
        self._running.set(self._parts.running + self._parts.parts_waiting)
        self._waiting.set(self._parts.parts_waiting)
        waited, self.waiting = self.waiting, self._parts.jobs_waiting
        places, self.places = self.places, 0 if self._loop.time() < self._busy_until else self._sequences_max
        if (waited or self.places > places) and not self.waiting and self.places:
            self._more_places()

    async def _compute(self, run: SourceRun, part: int) -> None:
        pieces: AsyncIterator[Any] | None = None
        try:
            pieces = self._pieces(run.ask(part))
            await self._read(run, part, pieces)
        except EngineBroken:
            raise
        except Exception as error:
            self._fail(run, error)
        finally:
            await self._close(pieces)

    async def _read(self, run: SourceRun, part: int, pieces: AsyncIterator[Any]) -> None:
        since, first = self._loop.time(), True
        async for piece in pieces:
            if run.ended:
                return
            if events := run.advance(part, piece):
                await self._write(run, events, at_once=first)
                first = False
            if run.ended or run.is_over(part):
                return
            if (now := self._loop.time()) - since > SLICE_S:
                await asyncio.sleep(0)
                since = now
        if not run.ended:
            await self._write(run, run.close(part))

    async def _write(self, run: SourceRun, events: list[Event], *, at_once: bool = False) -> None:
        """Wait while too much is undelivered: Redis is away, or slower than the source."""
        if events:
            self._parts.acquit(run)
            self._put(Update(run, events), at_once=at_once)
        while len(self._pending) > UPDATES_MAX:
            self._delivered.clear()
            await self._delivered.wait()

    def _put(self, update: Update, *, at_once: bool = False) -> None:
        """Have the update delivered at once, or with all others of the present `gather_s`: a delivery costs a call of
        Redis and a message to the API, whether one answer has grown or a hundred."""
        self._pending.append(update)
        if at_once:
            self._due.set()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._delivered_at + self._gather_s, self._due.set)

    async def _deliver(self) -> None:
        """Put what is written into the outbox. A thread waits for room in it, while other sources' parts go on."""
        thread = SingleThread("outbox")
        while True:
            await self._due.wait()
            self._due.clear()
            if self._timer:
                self._timer.cancel()
                self._timer = None
            updates, self._pending = self._pending, []
            self._delivered_at = self._loop.time()
            if not self._outbox.put_if_room(updates):
                await _result(thread.submit(partial(self._outbox.put, updates)))
            self._delivered.set()

    def _fail(self, run: SourceRun, error: Exception) -> None:
        """End the run as the error says, unless it has ended."""
        if run.ended:
            return
        if isinstance(error, Busy):
            self._put_back(run, error)
            return
        if not isinstance(error, InvalidRequest | AnswerLost):
            log.exception("a source failed", extra={"job_id": run.delivery.job.id})
            self._faults.inc()
        self._end(run, _failed(run.delivery.job.id, error))

    def _put_back(self, run: SourceRun, busy: Busy) -> None:
        """Give the job back to the queue, and take none while the source is busy."""
        log.info("the source is busy", extra={"model": run.delivery.job.model, "retry_after_s": busy.retry_after_s})
        wait_s = min(max(busy.retry_after_s, 0.0), BUSY_S_MAX)
        self._busy_until = max(self._busy_until, self._loop.time() + wait_s)
        self._loop.call_later(wait_s, self._fill)
        self._drop(run)
        self._put(Update(run, [], put_back=True))

    def _pieces(self, pieces: Any) -> AsyncIterator[Any]:
        if isinstance(pieces, AsyncIterator):
            return pieces
        if isinstance(pieces, Iterator):
            return self._in_thread(pieces)
        if inspect.iscoroutine(pieces):
            pieces.close()
        raise TypeError(f"a source must answer by a generator, not by a {type(pieces).__name__}")

    async def _in_thread(self, pieces: Iterator[Any]) -> AsyncIterator[Any]:
        """The pieces of a plain generator. One that does not come back when it is closed keeps its place."""
        thread = self._threads.pop() if self._threads else SingleThread("source")
        try:
            while (piece := await _result(thread.submit(partial(next, pieces, None)))) is not None:
                yield piece
        finally:
            if hasattr(pieces, "close"):
                await _result(thread.submit(pieces.close))
            self._threads.append(thread)

    async def _close(self, pieces: AsyncIterator[Any] | None) -> None:
        if not isinstance(pieces, AsyncGenerator):
            return
        try:
            await pieces.aclose()
        except Exception:
            log.warning("a source failed to end an answer", exc_info=True)


class Parts:
    """The parts of runs that wait for a place or have one. A place goes to the run that has fewest, so that a run of
    many parts delays no other. A suspect has the source for itself until it progresses."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[SourceRun, list[int]] = {}
        self._running: dict[SourceRun, set[int]] = {}
        self._suspects: list[SourceRun] = []

    @property
    def running(self) -> int:
        return sum(map(len, self._running.values()))

    @property
    def parts_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def jobs_waiting(self) -> int:
        return sum(run not in self._running for run in self._waiting)

    def add(self, run: SourceRun) -> None:
        self._waiting[run] = run.unfinished
        if run.delivery.isolated:
            self._suspects.append(run)

    def drop(self, run: SourceRun) -> list[int]:
        """Forget what waits of it; return the parts that run, which `free` forgets."""
        self._waiting.pop(run, None)
        self.acquit(run)
        return list(self._running.get(run, ()))

    def acquit(self, run: SourceRun) -> None:
        if run in self._suspects:
            self._suspects.remove(run)

    def next(self) -> tuple[SourceRun, int] | None:
        """Give the next part a place; None if none can have one."""
        run = self._next_run()
        if run is None or self.running >= self._places:
            return None
        part = self._waiting[run].pop(0)
        if not self._waiting[run]:
            del self._waiting[run]
        self._running.setdefault(run, set()).add(part)
        return run, part

    def free(self, run: SourceRun, part: int) -> None:
        self._running[run].discard(part)
        if not self._running[run]:
            del self._running[run]

    def _next_run(self) -> SourceRun | None:
        if self._suspects:
            suspect = self._suspects[0]
            alone = all(run is suspect for run in self._running)
            return suspect if alone and suspect in self._waiting else None
        return min(self._waiting, key=lambda run: len(self._running.get(run, ())), default=None)


def _failed(job_id: str, error: Exception) -> Failed:
    match error:
        case InvalidRequest():
            return refused(error)
        case AnswerLost():
            return Failed(code="upstream_lost", message=f"{error} (job {job_id})")
        case _:
            return engine_failed(error)


async def _result(future: "Future[Result]") -> Result:
    """The future's result. A task that is cancelled meanwhile leaves the future alone: its thread is busy all the
    same."""
    return await asyncio.shield(asyncio.wrap_future(future))
