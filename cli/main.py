"""`penstock`: one command, its verbs each in a module of their own."""

import asyncio
import sys
from pathlib import Path

import click

from cli.doctor import doctor
from cli.jobs import jobs
from cli.keys import keys
from cli.models import models
from cli.terminal import echo
from cli.where import DATA
from shared.errors import PenstockError
from shared.logs import configure_logging
from shared.settings import load_settings


@click.group()
@click.version_option(package_name="penstock")
def main() -> None:
    """LLM serving that never loses a request."""


@main.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--redis-url", help="Where the queue lives.")
def api(host: str | None, port: int | None, redis_url: str | None) -> None:
    """Serve the OpenAI API."""
    from api.main import serve  # each command pays only for its own imports

    settings = load_settings(host=host, port=port, redis_url=redis_url)
    configure_logging(settings.log_level)
    asyncio.run(serve(settings))


MODEL = click.option(
    "--model", "-m", "models", multiple=True, default=["builtin"], help="builtin, a folder or a hub id; repeatable."
)
ADAPTER = click.option(
    "--adapter", "-a", "adapters", multiple=True, help="LoRA adapter, NAME=FOLDER or NAME=HUB_ID; repeatable."
)


@main.command()
@MODEL
@ADAPTER
@click.option("--redis-url", help="Where the queue lives.")
@click.option("--port", type=int, help="Port of health and metrics; 0 picks a free one.")
def worker(models: tuple[str, ...], adapters: tuple[str, ...], redis_url: str | None, port: int | None) -> None:
    """Serve models from the queue."""
    from workers.openmp import spare_other_processes

    spare_other_processes()
    from workers.main import run as run_worker
    from workers.models import parse_specs

    settings = load_settings(redis_url=redis_url, worker_port=port)
    configure_logging(settings.log_level)
    run_worker(parse_specs(models, adapters), settings)


@main.command()
@MODEL
@ADAPTER
@click.option(
    "--workers",
    "-w",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Worker processes; 0 for the API alone.",
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--redis-url", help="Use this Redis, not an embedded one; PENSTOCK_REDIS_URL where it has a password.")
@click.option(
    "--data",
    default=DATA,
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder of data and logs, for one `penstock up` at a time.",
)
def up(
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    workers: int,
    host: str | None,
    port: int | None,
    redis_url: str | None,
    data: Path,
) -> None:
    """Run everything on this machine: Redis, the API and workers."""
    from cli.up import up as run_all

    settings = load_settings(host=host, port=port, redis_url=redis_url)
    chosen = settings.redis_url if "redis_url" in settings.model_fields_set else None
    run_all(models, adapters, workers=workers, data=data, redis_url=chosen, settings=settings)


@main.command()
@click.option("--url", default="http://127.0.0.1:8000/v1", show_default=True, help="Any OpenAI-compatible server.")
@click.option("--model", "-m", help="By default the first that can chat and is served.")
@click.option("--api-key", envvar="OPENAI_API_KEY", default="none", help="By default $OPENAI_API_KEY.")
def chat(url: str, model: str | None, api_key: str) -> None:
    """Talk to a model in the terminal."""
    from cli.chat import chat as talk

    sys.exit(talk(url, model=model, api_key=api_key))


@main.command()
@click.option("--redis-url", help="Where the queue lives; by default the one that `penstock up` runs here.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Between two pictures.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
def top(redis_url: str | None, seconds: float, once: bool) -> None:
    """Watch models, workers and jobs; q quits. Piped, it prints one picture and ends."""
    from cli.top import top as watch

    watch(redis_url, seconds=seconds, once=once, target_wait_s=load_settings().target_wait_s)


main.add_command(jobs)
main.add_command(keys)
main.add_command(models)
main.add_command(doctor)


def run() -> None:
    """Our own errors are one sentence, not a traceback."""
    try:
        main()
    except PenstockError as error:
        echo(f"penstock: {error}", err=True)
        sys.exit(2)
