"""Plays two faults against a minimal pipeline on Celery, and on taskiq with Redis streams: a task makes a token every
20 ms and appends it to a list in Redis, where its client reads it. `python -m bench.chaos.peers celery|taskiq` needs
the packages celery, or taskiq and taskiq-redis. Both run with their defaults, except that Celery acknowledges late:
without that, a killed worker's tasks are lost."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import redis

from cli.embedded_redis import EmbeddedRedis
from shared.process.sockets import free_port

TASKS, TOKENS, STEP_S = 16, 150, 0.02
WAIT_S = 120.0

CELERY = """
import time, redis
from celery import Celery
app = Celery("pipeline", broker="{url}", backend="{url}")
app.conf.task_acks_late = True
out = redis.Redis.from_url("{url}")
@app.task
def generate(name, tokens):
    for position in range(tokens):
        time.sleep({step})
        out.rpush("out:" + name, position)
    out.set("done:" + name, 1)
"""
CELERY_SEND = """
from pipeline import generate
for n in range({tasks}):
    generate.delay(str(n), {tokens})
"""

TASKIQ = """
import asyncio, redis.asyncio
from taskiq_redis import RedisStreamBroker
broker = RedisStreamBroker("{url}")
out = redis.asyncio.Redis.from_url("{url}")
@broker.task
async def generate(name: str, tokens: int) -> None:
    for position in range(tokens):
        await asyncio.sleep({step})
        await out.rpush("out:" + name, position)
    await out.set("done:" + name, 1)
"""
TASKIQ_SEND = """
import asyncio
from pipeline import broker, generate
async def main():
    await broker.startup()
    for n in range({tasks}):
        await generate.kiq(str(n), {tokens})
    await broker.shutdown()
asyncio.run(main())
"""
PIPELINES = {
    "celery": (CELERY, CELERY_SEND, ["celery", "-A", "pipeline", "worker", "-c", "16", "-P", "threads", "-l", "error"]),
    "taskiq": (TASKIQ, TASKIQ_SEND, ["taskiq", "worker", "pipeline:broker", "--workers", "1", "--log-level", "ERROR"]),
}


class Pipeline:
    def __init__(self, kind: str, folder: Path, python: str) -> None:
        code, send, self._command = PIPELINES[kind]
        self._python = python
        self.folder = folder
        self.redis = EmbeddedRedis(folder / "redis", port=free_port())
        self.redis.start()
        filled = {"url": self.redis.url, "step": STEP_S, "tasks": TASKS, "tokens": TOKENS}
        (folder / "pipeline.py").write_text(code.format(**filled))
        (folder / "send.py").write_text(send.format(**filled))
        self.client = redis.Redis.from_url(self.redis.url)
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        with (self.folder / "worker.log").open("ab") as log:
            command = [self._python, "-m", *self._command]
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def send(self) -> None:
        subprocess.run([self._python, "send.py"], cwd=self.folder, check=True)

    def written(self) -> list[int]:
        return [int(self.client.llen(f"out:{n}")) for n in range(TASKS)]

    def done(self) -> int:
        return sum(int(self.client.exists(f"done:{n}")) for n in range(TASKS))

    def stop(self) -> None:
        kill_all(self.worker)
        self.redis.stop()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its children, as if a whole machine failed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(truth: object, seconds: float) -> float | None:
    """Wait until `truth` holds; return the seconds, or None if it never holds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if truth():  # type: ignore[operator]
            return time.monotonic() - began
        time.sleep(0.02)
    return None


def play(pipeline: Pipeline, fault: str) -> str:
    pipeline.send()
    if wait(lambda: min(pipeline.written()) > 20, 30) is None:
        return f"only {sum(n > 20 for n in pipeline.written())} of {TASKS} tasks ran at once"
    before = pipeline.written()
    if fault == "worker":
        kill_all(pipeline.worker)
        pipeline.worker = pipeline.start_worker()
    else:
        pipeline.redis.kill()
        time.sleep(5)
        pipeline.redis.start()
    resumed = wait(lambda: sum(pipeline.written()) > sum(before) + TASKS, WAIT_S)
    wait(lambda: pipeline.done() == TASKS, 10)
    again = sum(max(0, written - TOKENS) for written in pipeline.written())
    told = f"next token after {resumed:.1f} s" if resumed else f"no token within {WAIT_S:.0f} s"
    return f"{told}, {pipeline.done()} of {TASKS} tasks done, {again} tokens written twice"


@click.command()
@click.argument("kind", type=click.Choice(list(PIPELINES)))
@click.option("--python", default=sys.executable, help="Python interpreter that has the packages.")
def main(kind: str, python: str) -> None:
    for fault in ("worker", "redis"):
        with tempfile.TemporaryDirectory() as folder:
            pipeline = Pipeline(kind, Path(folder), python)
            try:
                click.echo(f"{kind}, {fault} killed: {play(pipeline, fault)}")
            finally:
                pipeline.stop()


if __name__ == "__main__":
    main()
