"""`penstock`: one command, its verbs each in a module of their own."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli.doctor import doctor
from cli.jobs import jobs
from cli.keys import keys
from cli.models import models
from cli.redis_location import DATA, noted_url
from cli.terminal import echo
from shared.domain.errors import PenstockError
from shared.observability.logs import REFUSES, configure_logging
from shared.settings import Settings, load_settings, unknown_variables

SERVERS = ("api", "worker")
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
EXIT_REFUSED = 2


@click.group()
@click.version_option(package_name="penstock")
@click.pass_context
def main(context: click.Context) -> None:
    """LLM serving that never loses a request."""
    if context.invoked_subcommand not in SERVERS:  # those log it
        for warning in unknown_variables(os.environ):
            echo(f"warning: {warning}", err=True)


@contextmanager
def server(**overrides: object) -> Iterator[Settings]:
    """A server's settings. Whatever it says is a line of its log, and so is why it refuses to run."""
    configure_logging("INFO")
    log = logging.getLogger(REFUSES)
    try:
        settings = load_settings(**overrides)
        logging.getLogger().setLevel(settings.log_level)
        for warning in unknown_variables(os.environ):
            log.warning(warning)
        yield settings
    except PenstockError as error:
        log.error(str(error))
        sys.exit(EXIT_REFUSED)


@main.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--redis-url", help="Where the queue lives.")
def api(host: str | None, port: int | None, redis_url: str | None) -> None:
    """Serve the OpenAI API."""
    with server(host=host, port=port, redis_url=redis_url) as settings:
        from api.main import serve  # each command pays only for its own imports

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
@click.option("--redis-url", help="Where the queue lives; by default the one that `penstock up` runs here.")
@click.option("--port", type=int, help="Port of health and metrics; 0 picks a free one.")
def worker(models: tuple[str, ...], adapters: tuple[str, ...], redis_url: str | None, port: int | None) -> None:
    """Serve models from the queue."""
    for name in NO_BARS:  # they are no lines of a log; the libraries read this when they are imported
        os.environ.setdefault(name, "1")
    with server(redis_url=redis_url or noted_url(), worker_port=port) as settings:
        from workers.process.thread_spin import spare_other_processes

        spare_other_processes()
        from workers.main import run as run_worker
        from workers.model_loading import parse_specs

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
        sys.exit(EXIT_REFUSED)
