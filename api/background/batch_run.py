"""The run of one batch, from its lease to its end or to the loss of the lease. A bounded number of lines at a time are
jobs of the batch class, which run on without a reader.

Job ids derive from the batch's id and the line's number, so a successor finds jobs already enqueued. The lease is
renewed during the run, and every write depends on it: Redis records through a script that compares the lease's token,
rows and results because their file names carry the token.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from api.background.batch_files import BatchLine, LineError, PartialResults, check, error_of, lines
from api.http.auth import Caller
from api.http.problems import Problem, Refused, problem_of, validation_problem
from api.http.request_options import RequestOptions
from api.serving.respond import collect, enqueue_and_open
from api.serving.services import Services
from api.serving.submission import BATCHED, Submission
from api.stores.batches import LEASE_S, Batch, Lease, LeaseLost, Status
from api.stores.files import FileRecord
from shared.domain.daily_window import daily_window
from shared.domain.errors import (
    InvalidRequest,
    ModerationUnavailable,
    NotFound,
    NoVerdict,
    PenstockError,
    QueueFull,
    QueueUnavailable,
)
from shared.domain.job import Priority
from shared.process.tasks import first_of
from shared.redis.client import Command

log = logging.getLogger(__name__)
LOOK_S = 1.0
RETRY_S = 0.5
KEEP_S = LEASE_S / 5
WINDOW_LOOK_S = 10.0
MODERATION_RETRY_S = 2.0
LINES_BYTES_MAX = 16_000_000  # bytes of one batch's lines in memory at a time; a longer line runs alone
GIVEN_UP_AT_ONCE = 200
RESULTS = ((True, "output"), (False, "error"))


@dataclass(frozen=True, slots=True)
class Ending:
    """The final status of a batch, and the error of each line that is not done."""

    status: Status
    code: str = ""
    why: str = ""
    param: str | None = None


COMPLETED = Ending(Status.COMPLETED)
CANCELLED = Ending(Status.CANCELLED, "batch_cancelled", "This batch was cancelled before this request was done.")
EXPIRED = Ending(
    Status.EXPIRED, "batch_expired", "This request could not be executed before the completion window expired."
)
KEY_GONE = Ending(Status.FAILED, "invalid_api_key", "The API key that made this batch was revoked or has expired.")
INPUT_GONE = Ending(Status.FAILED, "file_not_found", "The input file of this batch no longer exists.", "input_file_id")


class BatchRun:
    """Runs one batch. `folder` has its results and partial results; `at_once` bounds the lines that are jobs."""

    def __init__(
        self, services: Services, batch: Batch, lease: Lease, *, folder: Path, at_once: int, clock: Callable[[], float]
    ) -> None:
        self._services = services
        self._store = services.batches
        self._files = services.files
        self._folder = folder
        self._at_once = at_once
        self._batch = batch
        self._lease = lease
        self._clock = clock
        self._window = daily_window(services.settings.batch_window)
        self._input = services.files.path(batch.input_file_id)
        self._parts: PartialResults | None = None
        self._options: RequestOptions

    async def run(self) -> None:
        """Run the batch to its end. Raises LeaseLost, QueueUnavailable or another error; then it has not ended."""
        await first_of(self._to_its_end(), self._keep_lease())

    async def end_bare(self) -> None:
        """End a failed batch without results if it is cancelled or expired: it must not be retried for ever."""
        if ending := await self._look():
            lost = LineError("internal_error", "The results of this batch could not be written.")
            await self._end(ending, errors=[error_of(lost)])

    async def _keep_lease(self) -> NoReturn:
        while True:
            await self._store.keep(self._lease)
            await asyncio.sleep(KEEP_S)

    async def _to_its_end(self) -> None:
        if self._batch.status is Status.VALIDATING and not await self._validate():
            return
        parts = await asyncio.to_thread(PartialResults, self._folder, self._batch.id, self._lease.token)
        self._parts = parts
        try:
            ending = await self._ending(parts)
            if ending is CANCELLED:
                self._batch = await self._move(Status.CANCELLING)
            if ending is not COMPLETED:
                await self._give_up(parts, ending)
            await self._finish(parts, ending)
        finally:
            await asyncio.to_thread(parts.close)

    async def _validate(self) -> bool:
        """Check the input. Return whether the lines may run; if not, the batch has ended."""
        if ending := await self._look():
            await self._end(ending)
            return False
        try:
            await self._files.record(self._batch.input_file_id, tenant=self._batch.tenant)
            checked = await asyncio.to_thread(
                check, self._input, self._batch.endpoint, line_bytes_max=self._services.settings.body_bytes_max
            )
        except (NotFound, FileNotFoundError):
            await self._end(INPUT_GONE)
            return False
        if checked.errors:
            await self._end(Ending(Status.FAILED), errors=checked.errors)
            return False
        self._batch = await self._move(Status.IN_PROGRESS, total=checked.total)
        return True

    async def _ending(self, parts: PartialResults) -> Ending:
        if self._batch.status is Status.FINALIZING:
            return COMPLETED
        if ending := await self._look():
            return ending
        return await first_of(self._all_lines(parts), self._until_stopped())

    async def _until_stopped(self) -> Ending:
        """Save the counts periodically; return when the batch must end before its lines do."""
        while True:
            await asyncio.sleep(LOOK_S)
            if ending := await self._look():
                return ending
            if (counted := self._counted()) != self._batch:
                await self._store.save(self._lease, counted)
                self._batch = counted

    async def _look(self) -> Ending | None:
        """Return why the batch must end before its lines do; None while it goes on with its key's current rights."""
        if await self._store.to_cancel([self._batch.id]):
            return CANCELLED
        if self._clock() > self._batch.expires_s:
            return EXPIRED
        try:
            key = await self._services.keys.get(self._batch.key) if self._batch.key else None
        except NotFound:
            return KEY_GONE
        if key and key.expired(self._clock()):
            return KEY_GONE
        caller = Caller(self._batch.tenant, key)
        self._options = RequestOptions(caller=caller, priority=Priority.BATCH, grace_s=math.inf, paced=False)
        return None

    async def _all_lines(self, parts: PartialResults) -> Ending:
        running = _RunningLines(lines_max=self._at_once, bytes_max=LINES_BYTES_MAX)

        async def one(line: BatchLine) -> None:
            try:
                await self._line(parts, line)
            finally:
                await running.leave(line.size)

        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    async for line in self._left(parts):
                        await self._window_open()
                        await running.enter(line.size)
                        tasks.create_task(one(line))
                except FileNotFoundError:
                    return INPUT_GONE
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return COMPLETED

    async def _window_open(self) -> None:
        """Wait until requests of batches may be enqueued. The clock may be set meanwhile, so it is looked at often."""
        while True:
            wait_s = self._window.wait_s(self._clock()) if self._window else 0
            if not wait_s:
                return
            await asyncio.sleep(min(wait_s, WINDOW_LOOK_S))

    async def _left(self, parts: PartialResults) -> AsyncIterator[BatchLine]:
        """Yield the lines that are not done. Raises FileNotFoundError."""
        bytes_max, done = self._services.settings.body_bytes_max, parts.done[True] | parts.done[False]
        reading = lines(self._input, self._batch.endpoint, line_bytes_max=bytes_max, done=done)
        while line := await asyncio.to_thread(next, reading, None):
            yield line

    async def _line(self, parts: PartialResults, line: BatchLine) -> None:
        job_id = f"{self._batch.id}-{line.number}"
        answer = await self._answered(line, job_id)
        self._lease.require()
        good = not isinstance(answer, Problem)
        await asyncio.to_thread(parts.add, [(line.number, _row(job_id, line, answer))], good=good)

    async def _answered(self, line: BatchLine, job_id: str) -> dict[str, Any] | Problem:
        """Return the answer of a line; wait while its queue is full or away, or nothing moderates it. Raises
        LeaseLost."""
        while True:
            try:
                submission = await self._submission(line, job_id)
                self._lease.require()
                return await self._answer(submission)
            except ValidationError as error:
                return validation_problem(error)
            except Refused as refused:
                return refused.problem
            except QueueFull as error:
                await asyncio.sleep(error.retry_after_s)
            except QueueUnavailable:
                await asyncio.sleep(RETRY_S)
            except NoVerdict as error:
                return problem_of(error)
            except ModerationUnavailable:
                await asyncio.sleep(MODERATION_RETRY_S)
            except PenstockError as error:
                return problem_of(error)
            except LeaseLost:
                raise
            except Exception:  # an error must fail only its own line
                log.exception("a line of a batch failed", extra={"job_id": job_id})
                return problem_of(PenstockError())

    async def _submission(self, line: BatchLine, job_id: str) -> Submission:
        """Build the line's submission with the key's current rights. Raises PenstockError or ValidationError."""
        if line.wrong:
            raise InvalidRequest(line.wrong.message, param=line.wrong.param)
        schema, make = BATCHED[self._batch.endpoint]
        body = schema.model_validate(line.body)
        _require_batchable(body)
        submission = await make(self._services, body, self._options)
        return replace(submission, job=replace(submission.job, id=job_id))

    async def _answer(self, submission: Submission) -> dict[str, Any]:
        with ExitStack() as opened:
            job, events, _ = await enqueue_and_open(self._services, submission, self._options, opened)
            return await collect(self._services, events, submission.formatter.whole(job))

    async def _give_up(self, parts: PartialResults, ending: Ending) -> None:
        """Cancel the waiting and running jobs, and write an error for each line that is not done."""
        some: list[BatchLine] = []
        try:
            async for line in self._left(parts):
                some.append(line._replace(body={}))
                if len(some) == GIVEN_UP_AT_ONCE:
                    await self._give_lines_up(parts, some, ending)
                    some = []
            await self._give_lines_up(parts, some, ending)
        except OSError:  # the lines' custom ids can no longer be read
            await self._cancel_jobs(set(range(self._batch.total)) - parts.done[True] - parts.done[False])

    async def _give_lines_up(self, parts: PartialResults, some: list[BatchLine], ending: Ending) -> None:
        await self._cancel_jobs(line.number for line in some)
        self._lease.require()
        rows = [(line.number, _unanswered(f"{self._batch.id}-{line.number}", line, ending)) for line in some]
        await asyncio.to_thread(parts.add, rows, good=False)

    async def _cancel_jobs(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self._services.queue.cancel(f"{self._batch.id}-{number}", by="its batch")

    async def _finish(self, parts: PartialResults, ending: Ending) -> None:
        if ending is COMPLETED:
            self._batch = await self._move(Status.FINALIZING)
        made = {name: record for good, name in RESULTS if (record := await self._result(parts, good, name))}
        commands = [command for record in made.values() for command in self._files.registration(record)]
        paths = [self._files.path(record.id) for record in made.values()]
        try:
            await self._end(ending, *commands, **{f"{name}_file_id": record.id for name, record in made.items()})
        except LeaseLost:
            for path in paths:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        await asyncio.to_thread(parts.remove, keep=paths)

    async def _result(self, parts: PartialResults, good: bool, name: str) -> FileRecord | None:
        """Write a result file under a name of this lease, and return its record, which is not registered yet."""
        file_id = f"file-{self._batch.id}-{self._lease.token.rpartition('.')[2]}-{name}"
        path = self._files.path(file_id)
        size = await asyncio.to_thread(parts.assemble, path, good=good)
        if not size:
            await asyncio.to_thread(path.unlink)
            return None
        return self._files.described(
            file_id,
            tenant=self._batch.tenant,
            filename=f"{self._batch.id}_{name}.jsonl",
            purpose="batch_output",
            size=size,
            lifetime_s=self._batch.output_lifetime_s,
        )

    async def _end(self, ending: Ending, *commands: Command, **changes: Any) -> None:
        """Write the end, the results and the webhook deliveries in one transaction."""
        if ending.status is Status.FAILED and ending.code:
            changes["errors"] = [error_of(LineError(ending.code, ending.why, ending.param))]
        told = await self._services.webhooks.deliveries(self._batch.tenant, f"batch.{ending.status}", self._batch.id)
        self._batch = await self._move(ending.status, *commands, *told, **changes)

    async def _move(self, status: Status, *commands: Command, **changes: Any) -> Batch:
        return await self._store.move(self._lease, self._counted(), status, *commands, **changes)

    def _counted(self) -> Batch:
        if self._parts is None:
            return self._batch
        done = self._parts.done
        return replace(self._batch, completed=len(done[True]), failed=len(done[False] - done[True]))


class _RunningLines:
    """Bounds the lines that run at a time, and their bytes; a single line always fits."""

    def __init__(self, *, lines_max: int, bytes_max: int) -> None:
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._lines = self._bytes = 0
        self._left = asyncio.Condition()

    async def enter(self, size: int) -> None:
        async with self._left:
            await self._left.wait_for(lambda: self._fits(size))
            self._lines += 1
            self._bytes += size

    async def leave(self, size: int) -> None:
        async with self._left:
            self._lines -= 1
            self._bytes -= size
            self._left.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._lines or (self._lines < self._lines_max and self._bytes + size <= self._bytes_max)


def _require_batchable(body: Any) -> None:
    """Raise InvalidRequest for a parameter that a batch does not support."""
    for param, message in (
        ("stream", "'stream' is not allowed in a batch."),
        ("store", "'store' is not allowed in a batch, whose output is kept."),
        ("background", "'background' is not allowed in a batch."),
        ("previous_response_id", "'previous_response_id' is not allowed in a batch."),
        ("conversation", "'conversation' is not allowed in a batch."),
    ):
        if getattr(body, param, None):
            raise InvalidRequest(message, param=param)


def _row(job_id: str, line: BatchLine, answer: dict[str, Any] | Problem) -> dict[str, Any]:
    """Return OpenAI's row of an output or error file."""
    status, body = (answer.status, answer.body) if isinstance(answer, Problem) else (200, answer)
    response = {"status_code": status, "request_id": job_id, "body": body}
    return {"id": f"batch_req_{job_id}", "custom_id": line.custom_id, "response": response, "error": None}


def _unanswered(job_id: str, line: BatchLine, ending: Ending) -> dict[str, Any]:
    error = {"code": ending.code, "message": ending.why}
    return {"id": f"batch_req_{job_id}", "custom_id": line.custom_id, "response": None, "error": error}
