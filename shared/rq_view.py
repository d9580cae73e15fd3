"""The records that RQ's own tools read: job hashes, worker records, tracebacks. Penstock never unpickles them."""

import base64
import os
import platform
import socket
import zlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from shared.domain.job import Job
from shared.redis import keys

# RQ pickles (function, instance, args, kwargs) into `data` and shows it. This is the pickle of
# ("shared.rq_view.served_by_penstock_workers", None, (), {}): constant, so nothing a user sends is ever unpickled.
DATA = zlib.compress(
    b"\x80\x04\x954\x00\x00\x00\x00\x00\x00\x00(\x8c)shared.rq_view.served_by_penstock_workers\x94N)}\x94t\x94."
)
RQ_VERSION = "2.12.0"
ELSEWHERE = ("192.0.2.1", 9)  # an address that nobody has (RFC 5737)


def served_by_penstock_workers() -> None:
    """Tell a plain `rq worker` that was pointed at a model's queue by mistake. Raises RuntimeError."""
    raise RuntimeError("This job is served by `penstock worker`, not by `rq worker`. Requeue it when one runs.")


def job_fields(job: Job, iso: str, failed_ttl_s: int) -> dict[str, Any]:
    """Return the fields of a job that RQ needs. The description carries no word of the prompt."""
    return {
        "created_at": iso,
        "enqueued_at": iso,
        "data": DATA,
        "origin": job.model,
        "status": "queued",
        "description": f"{job.kind} for {job.model}",
        "timeout": 600,
        "failure_ttl": failed_ttl_s,
    }


def traceback_field(text: str) -> str:
    """Encode RQ's `exc_string`: base64 of the zlib-compressed text."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


async def register_worker(
    client: Redis,
    name: str,
    models: Sequence[str],
    *,
    born: str,
    ttl_s: int,
    url: str = "",
    sleeps: bool = False,
    asleep: bool = False,
) -> None:
    """Make the worker visible to `rq info` for `ttl_s`. Every heartbeat repeats this, so that even a flushed Redis
    shows the worker again. `url` leads to its health and metrics. A worker that `sleeps` can leave its device; one that
    is `asleep` serves none of its models."""
    key = keys.worker(name)
    record: dict[Any, Any] = {
        "birth": born,
        "queues": ",".join(models),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "ip_address": _address(),
        "version": RQ_VERSION,
        "python_version": platform.python_version(),
        "url": url,
        "sleeps": int(sleeps),
        "asleep": int(asleep),
    }
    counted = {"state": "idle", "successful_job_count": 0, "failed_job_count": 0, "total_working_time": 0}
    async with client.pipeline(transaction=True) as pipe:
        pipe.hset(key, mapping=record)
        for field, initial in counted.items():
            pipe.hsetnx(key, field, str(initial))
        pipe.expire(key, ttl_s)
        pipe.sadd(keys.WORKERS, key)
        for model in models:
            (pipe.srem if asleep else pipe.sadd)(keys.workers_of(model), key)
            pipe.sadd(keys.QUEUES, keys.queue(model))
        await pipe.execute()


async def unregister_worker(client: Redis, name: str, models: Sequence[str]) -> None:
    key = keys.worker(name)
    async with client.pipeline(transaction=True) as pipe:
        pipe.srem(keys.WORKERS, key)
        for model in models:
            pipe.srem(keys.workers_of(model), key)
        pipe.delete(key)
        await pipe.execute()


def _address() -> str:
    """Return the address from which this machine talks to others. Connecting a datagram socket sends nothing and asks
    no name server, whose answer could take long while leases wait to be renewed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.connect(ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(datagrams.getsockname()[0])
