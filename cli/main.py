"""`penstock`: one command, its verbs each in a module of their own."""

import asyncio
import sys

import click

from shared.errors import PenstockError
from shared.settings import load_settings
from shared.telemetry import configure_logging


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


@main.command()
@click.option("--model", "-m", "models", multiple=True, default=["builtin"], help="Model to serve; repeatable.")
@click.option("--redis-url", help="Where the queue lives.")
@click.option("--port", type=int, help="Port of health and metrics; 0 picks a free one.")
def worker(models: tuple[str, ...], redis_url: str | None, port: int | None) -> None:
    """Serve models from the queue."""
    from workers.main import serve
    from workers.models import parse_spec

    settings = load_settings(redis_url=redis_url, worker_port=port)
    configure_logging(settings.log_level)
    asyncio.run(serve([parse_spec(text) for text in models], settings))


def run() -> None:
    """Our own errors are one sentence, not a traceback."""
    try:
        main()
    except PenstockError as error:
        click.echo(f"penstock: {error}", err=True)
        sys.exit(2)
