"""`penstock up`: Redis, the API and the workers of one machine in one command, ended together by Ctrl-C."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
import httpx

from cli.child import Child
from cli.embedded_redis import EmbeddedRedis
from cli.where import REDIS_URL_FILE
from shared.checkup import require_healthy
from shared.redis_client import connect
from shared.settings import Settings
from shared.sockets import listen
from workers.models import ModelSpec, parse_specs

STOP_S = 5.0
APPENDFSYNC = {"fast": "everysec", "safe": "always", "durable": "always"}
POLL_S = 0.2


def up(
    models: Sequence[str],
    adapters: Sequence[str],
    *,
    workers: int,
    data: Path,
    redis_url: str | None,
    settings: Settings,
) -> None:
    """Run until Ctrl-C or SIGTERM. Raises SettingsError, before anything runs, for what cannot work."""
    specs = parse_specs(models, adapters)
    asked = [f"--model={text}" for text in models] + [f"--adapter={text}" for text in adapters]
    listen(settings.host, settings.port, setting="PORT").close()
    stopping = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, _setter(stopping))
    redis = None if redis_url else EmbeddedRedis(data / "redis", appendfsync=APPENDFSYNC[settings.durability])
    if redis:
        click.echo(f"Redis      {redis.url}  (embedded, data in {data / 'redis'})")
        redis.start()
    url = redis_url or (redis.url if redis else "")
    children: list[Child] = []
    try:
        asyncio.run(_check(settings.model_copy(update={"redis_url": url})))
        data.mkdir(parents=True, exist_ok=True)
        (data / REDIS_URL_FILE).write_text(url + "\n")
        children = _children(asked, workers, data, url, settings)
        for child in children:
            child.start()
        if _wait_ready(children, specs, workers, settings, stopping):
            click.echo(_welcome(specs[0].name, settings, url, data))
        _watch(children, stopping)
    finally:
        _stop(children, redis)


async def _check(settings: Settings) -> None:
    client = connect(settings.redis_url)
    try:
        await require_healthy(client, settings)
    finally:
        await client.aclose()


def _children(asked: Sequence[str], workers: int, data: Path, url: str, settings: Settings) -> list[Child]:
    threads = max(1, (os.cpu_count() or 1) // max(workers, 1))
    shared = {
        "PENSTOCK_REDIS_URL": url,
        "PENSTOCK_FILES": settings.files if "files" in settings.model_fields_set else str(data / "files"),
        "PENSTOCK_DRAIN_S": str(min(settings.drain_s, STOP_S - 2)),
        "PENSTOCK_HOST": settings.host,
        "PENSTOCK_PORT": str(settings.port),
    }
    threaded = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    api = Child("api", ["api"], environment=shared, log=data / "logs" / "api.log")
    return [
        api,
        *[
            Child(
                f"worker {n}", ["worker", *asked], environment=shared | threaded, log=data / "logs" / f"worker-{n}.log"
            )
            for n in range(1, workers + 1)
        ],
    ]


def _wait_ready(
    children: list[Child], specs: list[ModelSpec], workers: int, settings: Settings, stopping: threading.Event
) -> bool:
    """Until every model has all its workers; False when asked to stop before."""
    names = [name for spec in specs for name in (spec.name, *dict(spec.adapters))]
    click.echo(f"Loading    {', '.join(names)} in {workers} worker{'s' if workers != 1 else ''} ", nl=False)
    began, shown = time.monotonic(), 0
    while not stopping.wait(POLL_S):
        for child in children:
            child.check()
        if _serving(settings, names, workers):
            click.echo(f" ready after {time.monotonic() - began:.1f} s")
            return True
        if time.monotonic() - began > shown + 1:
            shown += 1
            click.echo(".", nl=False)
    click.echo()
    return False


def _serving(settings: Settings, names: list[str], workers: int) -> bool:
    try:
        listed = httpx.get(f"{_base(settings)}/v1/models", timeout=2).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    counts = {model["id"]: model["workers"] for model in listed}
    return all(counts.get(name, 0) >= workers for name in names)


def _watch(children: list[Child], stopping: threading.Event) -> None:
    while not stopping.wait(POLL_S):
        for child in children:
            if told := child.check():
                click.echo(told)


def _stop(children: list[Child], redis: EmbeddedRedis | None) -> None:
    if children:
        click.echo("Stopping ..")
    deadline = time.monotonic() + STOP_S
    for child in children:
        child.terminate()
    for child in children:
        child.wait(deadline)
    if redis:
        redis.stop()


def _setter(stopping: threading.Event) -> "signal._HANDLER":
    def stop(_: int, __: FrameType | None) -> None:
        stopping.set()

    return stop


def _base(settings: Settings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{host}:{settings.port}"


def _welcome(model: str, settings: Settings, redis_url: str, data: Path) -> str:
    base = _base(settings)
    bin_ = "" if shutil.which("penstock") else os.path.relpath(Path(sys.executable).parent) + "/"
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return f"""
Penstock   {base}/v1   (logs in {data / "logs"}; Ctrl-C stops everything)

  curl -N {base}/v1/chat/completions -H 'content-type: application/json' \\
    -d {shlex.quote(body)}

  from openai import OpenAI
  client = OpenAI(base_url="{base}/v1", api_key="none")
  hello = [{{"role": "user", "content": "Hello!"}}]
  for chunk in client.chat.completions.create(model="{model}", messages=hello, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

  {bin_}penstock chat{"" if settings.port == 8000 else f" --url {base}/v1"}
  {bin_}penstock jobs list
  {bin_}rq info -u {redis_url}
"""
