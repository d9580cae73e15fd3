"""Works through batches, a bounded number of lines at a time, as jobs of the batch class that nobody needs to wait for.

A line's job has an id of its own line: who goes on after a crash finds the jobs that the dead one enqueued. An API
process holds the lease of the batch it works on; its own death, or a stop, is the next one's beginning.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api.auth import Caller
from api.batch import Batch, Status
from api.batch_lines import Line, Parts, check, lines
from api.exchange import collect, enter
from api.house import House
from api.problems import Problem, Refused, problem_of, validation_problem
from api.terms import Terms
from api.work import BATCHED, Work
from shared.errors import InvalidRequest, NotFound, PenstockError, QueueFull, QueueUnavailable
from shared.job import Priority
from shared.tasks import end

log = logging.getLogger(__name__)
LOOK_S = 1.0
WHY = {
    Status.CANCELLED: ("batch_cancelled", "This batch was cancelled before this request was done."),
    Status.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
}
RETRY_S = 0.5


class LeaseLost(Exception):
    """Somebody else goes on."""


class Interrupted(Exception):
    """The batch was cancelled, or has expired."""

    def __init__(self, into: Status) -> None:
        super().__init__(into)
        self.into = into


class BatchRunner:
    """`at_once`: lines of one batch that are jobs at a time."""

    def __init__(self, house: House, *, folder: Path, at_once: int, clock: Callable[[], float] = time.time) -> None:
        self._house = house
        self._store = house.batches
        self._files = house.files
        self._folder = folder
        self._at_once = at_once
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever. Ended, it leaves its batches to others."""
        try:
            while True:
                try:
                    await self._files.sweep()
                    await self._pick_up()
                except QueueUnavailable as error:
                    log.warning("batches wait for redis", extra={"error": str(error)})
                except Exception:
                    log.exception("batches were not looked at")
                await asyncio.sleep(LOOK_S)
        finally:
            await end(list(self._running.values()))

    async def _pick_up(self) -> None:
        for batch_id in await self._store.open():
            if batch_id not in self._running and await self._store.lease(batch_id):
                task = asyncio.create_task(self._work(batch_id))
                self._running[batch_id] = task
                task.add_done_callback(partial(self._forget, batch_id))

    def _forget(self, batch_id: str, _: asyncio.Task[None]) -> None:
        del self._running[batch_id]

    async def _work(self, batch_id: str) -> None:
        try:
            batch = await self._store.get(batch_id)
            if batch.status is Status.VALIDATING:
                batch = await self._validate(batch)
            if not batch.status.ended:
                await self._carry_on(batch)
        except (QueueUnavailable, LeaseLost) as error:
            log.warning("a batch waits for redis", extra={"batch": batch_id, "error": str(error)})
        except Exception:
            log.exception("a batch failed", extra={"batch": batch_id})
            await asyncio.sleep(LOOK_S)
        finally:
            with suppress(QueueUnavailable):
                await self._store.release(batch_id)

    async def _validate(self, batch: Batch) -> Batch:
        try:
            await self._files.record(batch.input_file_id, tenant=batch.tenant)
        except NotFound as error:
            gone = {"code": "file_not_found", "line": None, "message": str(error), "param": "input_file_id"}
            return await self._end(batch, Status.FAILED, errors=[gone])
        checked = await asyncio.to_thread(check, self._files.path(batch.input_file_id), batch.endpoint)
        if checked.errors:
            return await self._end(batch, Status.FAILED, errors=checked.errors)
        return await self._store.move(batch, Status.IN_PROGRESS, total=checked.total)

    async def _carry_on(self, batch: Batch) -> None:
        parts = await asyncio.to_thread(Parts, self._folder, batch.id)
        try:
            into = await self._until_interrupted(batch, parts)
            if into is Status.CANCELLED:
                batch = await self._store.move(_counted(batch, parts), Status.CANCELLING)
            if into is not Status.COMPLETED:
                await self._give_up(batch, parts, into)
            await self._finish(batch, parts, into)
        finally:
            parts.close()

    async def _until_interrupted(self, batch: Batch, parts: Parts) -> Status:
        """What the batch comes to. Raises LeaseLost."""
        working = asyncio.create_task(self._all_lines(batch, parts))
        watching = asyncio.create_task(self._watch(batch, parts))
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            else:
                watching.result()
        except Interrupted as stopped:
            return stopped.into
        finally:
            await end((working, watching))
        return Status.COMPLETED

    async def _all_lines(self, batch: Batch, parts: Parts) -> None:
        room = asyncio.Semaphore(self._at_once)
        terms = await self._terms(batch)

        async def one(line: Line) -> None:
            try:
                await self._line(batch, line, terms, parts)
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            for line in self._left(batch, parts):
                await room.acquire()
                tasks.create_task(one(line))

    def _left(self, batch: Batch, parts: Parts) -> Iterator[Line]:
        done = parts.done[True] | parts.done[False]
        return (line for line in lines(self._files.path(batch.input_file_id)) if line.number not in done)

    async def _watch(self, batch: Batch, parts: Parts) -> None:
        """Keep the lease, tell how far it is, and notice that it is to end. Raises Interrupted and LeaseLost."""
        while True:
            if not await self._store.lease(batch.id):
                raise LeaseLost
            if await self._store.to_cancel(batch.id):
                raise Interrupted(Status.CANCELLED)
            if self._clock() > batch.expires_s:
                raise Interrupted(Status.EXPIRED)
            await self._store.save(_counted(batch, parts))
            await asyncio.sleep(LOOK_S)

    async def _line(self, batch: Batch, line: Line, terms: Terms, parts: Parts) -> None:
        schema, make = BATCHED[batch.endpoint]
        job_id = f"{batch.id}-{line.number}"
        while True:
            try:
                body = schema.model_validate(line.body)
                if getattr(body, "stream", None):
                    raise InvalidRequest("A batch streams nothing.", param="stream")
                if getattr(body, "store", None):
                    raise InvalidRequest("A batch stores nothing but its output.", param="store")
                work = await make(self._house.admission, body, terms)
                answer = await self._answer(replace(work, job=replace(work.job, id=job_id)), terms)
            except ValidationError as error:
                parts.add(line.number, _row(job_id, line, validation_problem(error)), good=False)
            except Refused as refused:
                parts.add(line.number, _row(job_id, line, refused.problem), good=False)
            except QueueFull as error:
                await asyncio.sleep(error.retry_after_s)
                continue
            except QueueUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            except PenstockError as error:
                parts.add(line.number, _row(job_id, line, problem_of(error)), good=False)
            else:
                parts.add(line.number, _row(job_id, line, answer), good=True)
            return

    async def _answer(self, work: Work, terms: Terms) -> dict[str, Any]:
        with ExitStack() as opened:
            job, events, _ = await enter(self._house, work, terms, opened)
            return await collect(self._house, events, work.answer(job))

    async def _terms(self, batch: Batch) -> Terms:
        """Of the key that made it, as it is now; a revoked one's batch goes on as nobody's."""
        key = None
        if batch.key:
            with suppress(NotFound):
                key = await self._house.keys.get(batch.key)
        return Terms(caller=Caller(batch.tenant, key), priority=Priority.BATCH, grace_s=math.inf, paced=False)

    async def _give_up(self, batch: Batch, parts: Parts, into: Status) -> None:
        """Cancel what waits or runs, and say of each line that is not done why."""
        code, why = WHY[into]
        for line in self._left(batch, parts):
            await self._house.queue.cancel(f"{batch.id}-{line.number}", by="its batch")
            error = {"code": code, "message": why}
            about = {"id": f"batch_req_{batch.id}-{line.number}", "custom_id": line.custom_id}
            parts.add(line.number, about | {"response": None, "error": error}, good=False)

    async def _finish(self, batch: Batch, parts: Parts, into: Status) -> None:
        batch = _counted(batch, parts)
        if into is Status.COMPLETED:
            batch = await self._store.move(batch, Status.FINALIZING)
        made = {}
        for good, name in ((True, "output"), (False, "error")):
            whole = self._folder / f"{batch.id}.{name}.jsonl"
            if await asyncio.to_thread(parts.assemble, whole, good=good):
                with whole.open("rb") as source:
                    record = await self._files.create(
                        source,
                        file_id=f"file-{batch.id}-{name}",
                        tenant=batch.tenant,
                        filename=f"{batch.id}_{name}.jsonl",
                        purpose="batch_output",
                        lifetime_s=batch.output_lifetime_s,
                    )
                made[f"{name}_file_id"] = record.id
            whole.unlink(missing_ok=True)
        await self._end(batch, into, **made)
        parts.remove()

    async def _end(self, batch: Batch, status: Status, **changes: Any) -> Batch:
        """Told before it is done: told again, it is the same."""
        await self._house.webhooks.notify(batch.tenant, f"batch.{status}", batch.id)
        return await self._store.move(batch, status, **changes)


def _counted(batch: Batch, parts: Parts) -> Batch:
    return replace(batch, completed=len(parts.done[True]), failed=len(parts.done[False] - parts.done[True]))


def _row(job_id: str, line: Line, answer: dict[str, Any] | Problem) -> dict[str, Any]:
    """OpenAI's row of an output or error file."""
    status, body = (answer.status, answer.body) if isinstance(answer, Problem) else (200, answer)
    response = {"status_code": status, "request_id": job_id, "body": body}
    return {"id": f"batch_req_{job_id}", "custom_id": line.custom_id, "response": response, "error": None}
