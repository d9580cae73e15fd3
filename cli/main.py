"""The command `penstock`; each of its sub-commands has a module of its own."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cli.backend import REDIS_URL_HELP
from cli.doctor import doctor
from cli.extras import of_extra
from cli.job_reruns import compare, rerun
from cli.jobs import jobs
from cli.keys import keys
from cli.models import models
from cli.redis_location import API_URL, DATA, api_url, noted_url
from cli.terminal import echo
from shared.domain.errors import PenstockError, SettingsError
from shared.observability.logs import REFUSES, configure_logging
from shared.settings import Settings, load_settings, unknown_variables

SERVERS = ("api", "worker", "host")
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
EXIT_REFUSED = 2


@click.group()
@click.version_option(package_name="penstock")
@click.pass_context
def main(context: click.Context) -> None:
    """Penstock serves language models behind OpenAI's API and never loses a request.

    `penstock up` runs everything on one machine; `penstock api` and `penstock worker` run the parts. The other commands
    inspect and operate a running Penstock. Every setting is an environment variable that begins with PENSTOCK_."""
    if context.invoked_subcommand not in SERVERS:  # servers log these warnings
        for warning in unknown_variables(os.environ):
            echo(f"warning: {warning}", err=True)


@contextmanager
def server(**overrides: object) -> Iterator[Settings]:
    """Load a server's settings and configure its log. The reason for a refusal to run is a log line, too."""
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


HOST = click.option("--host", help="Address on which the API listens.")
PORT = click.option("--port", type=int, help="Port on which the API listens.")


@main.command()
@HOST
@PORT
@click.option("--redis-url", help="URL of the Redis that holds the queue. The default is PENSTOCK_REDIS_URL.")
def api(host: str | None, port: int | None, redis_url: str | None) -> None:
    """Run the API, which queues requests and streams the answers."""
    with server(host=host, port=port, redis_url=redis_url) as settings:
        from api.main import serve  # each command pays only for its own imports

        asyncio.run(serve(settings))


NAMED = click.argument("named", metavar="[MODEL]...", nargs=-1)
MODEL = click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    help="Model to serve: builtin, a folder, or a Hugging Face id; the same as the argument MODEL. May be repeated. "
    "The default is builtin.",
)
ADAPTER = click.option(
    "--adapter",
    "-a",
    "adapters",
    multiple=True,
    help="LoRA adapter to serve as a model: NAME=FOLDER or NAME=HUGGING_FACE_ID. May be repeated.",
)
ENGINE = click.option(
    "--engine",
    help="Engine that computes the models. The default is PENSTOCK_ENGINE, or the one that fits each source.",
)
ENGINE_OPTION = click.option(
    "--engine-option",
    "engine_options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Option that only this engine knows; VALUE is JSON, or else a text. May be repeated.",
)
UPSTREAM = click.option(
    "--upstream",
    "upstreams",
    metavar="URL",
    multiple=True,
    help="Server that computes the models by OpenAI's API, like http://localhost:8000/v1; without MODEL, those that it "
    "lists. May be repeated: the next is asked when one has no room or does not answer.",
)
MODELS_FILE = click.option(
    "--models",
    "models_file",
    metavar="FILE",
    help="Models file, which says what is served and how. The default is PENSTOCK_MODELS.",
)
BUILTIN = ("builtin",)


def _engine(
    engine: str | None, engine_options: tuple[str, ...], upstreams: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """The engine and its options; `--upstream URL` is short for the engine `upstream` with these URLs."""
    if not upstreams:
        return engine, engine_options
    if engine not in (None, "upstream"):
        raise click.UsageError(f"--upstream is for the engine upstream, not for {engine}.")
    return "upstream", (*engine_options, f"urls={json.dumps(upstreams)}")


def _models(named: tuple[str, ...], engine_options: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """The models to serve: those that are named, else those that the upstreams list, else the built-in one. Options of
    upstreams are looked at before anything starts."""
    if settings.engine != "upstream":
        return named or BUILTIN
    from workers.engines.upstream.discovery import listed_models, options_of
    from workers.loading.options import parse_options

    options = options_of(parse_options(engine_options, settings.engine_options))
    return named or tuple(listed_models(options))


def _told(models_file: str | None, *options: object) -> bool:
    """Return true if the options say what is served. A file would say it once more."""
    told = any(options)
    if models_file and told:
        raise click.UsageError("--models names a file that says all of this: models, adapters, engine and options.")
    return told


@main.command()
@NAMED
@MODEL
@ADAPTER
@ENGINE
@ENGINE_OPTION
@UPSTREAM
@MODELS_FILE
@click.option("--only", metavar="NAME[,NAME]...", help="Models of the file to serve. The default is all of them.")
@click.option("--redis-url", help=REDIS_URL_HELP)
@click.option("--port", type=int, help="Port for health checks and metrics; 0 picks a free one.")
def worker(
    named: tuple[str, ...],
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    engine: str | None,
    engine_options: tuple[str, ...],
    upstreams: tuple[str, ...],
    models_file: str | None,
    only: str | None,
    redis_url: str | None,
    port: int | None,
) -> None:
    """Run a worker, which loads models and answers queued jobs."""
    told = _told(models_file, named, models, adapters, engine, engine_options, upstreams)
    for name in NO_BARS:  # progress bars are not log lines; the libraries read these variables when they are imported
        os.environ.setdefault(name, "1")
    engine, engine_options = _engine(engine, engine_options, upstreams)
    with server(redis_url=redis_url or noted_url(), worker_port=port, engine=engine) as settings:
        from workers.process.thread_spin import spare_other_processes

        spare_other_processes()
        from workers.loading.file_specs import read_specs, worker_settings
        from workers.loading.model_spec import specs_of
        from workers.main import run as run_worker

        file = models_file or ("" if told else settings.models)
        if only and not file:
            raise click.UsageError("--only names models of a file; name the file by --models FILE.")
        if file:
            specs = read_specs(Path(file), only or "", settings)
            run_worker(specs, worker_settings(specs, settings))
            return
        served = _models((*named, *models), engine_options, settings)
        run_worker(specs_of(served, adapters, engine_options, settings), settings)


@main.command()
@click.option(
    "--models",
    "models_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that says which models there are. The default is PENSTOCK_MODELS.",
)
@click.option(
    "--data",
    default=DATA,
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder for logs and what is learnt of the models. One host at a time has it; another one waits.",
)
@click.option("--redis-url", help=REDIS_URL_HELP)
def host(models_file: Path | None, data: Path, redis_url: str | None) -> None:
    """Load and unload the models of a file on this machine, as requests want them.

    Its workers outlive it if it is killed, and the next host of the folder takes them over."""
    with server(redis_url=redis_url or noted_url()) as settings:
        from workers.host.main import serve

        if not (file := models_file or (Path(settings.models) if settings.models else None)):
            raise SettingsError("PENSTOCK_MODELS: name a models file by --models or by this variable")
        asyncio.run(serve(file, data / "host", settings))


@main.command()
@NAMED
@MODEL
@ADAPTER
@ENGINE
@ENGINE_OPTION
@UPSTREAM
@MODELS_FILE
@click.option(
    "--workers",
    "-w",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Number of worker processes; 0 runs the API alone. Of a models file, a host starts as many as it says.",
)
@HOST
@PORT
@click.option(
    "--redis-url",
    help="URL of a Redis to use instead of an embedded one. Give a URL with a password in PENSTOCK_REDIS_URL.",
)
@click.option(
    "--data",
    default=DATA,
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder for data and logs. Only one `penstock up` at a time can use it.",
)
def up(
    named: tuple[str, ...],
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    engine: str | None,
    engine_options: tuple[str, ...],
    upstreams: tuple[str, ...],
    models_file: str | None,
    workers: int,
    host: str | None,
    port: int | None,
    redis_url: str | None,
    data: Path,
) -> None:
    """Run everything on this machine: Redis, the API and the workers. Ctrl-C stops it."""
    from cli.up import up as run_all
    from cli.up import up_file

    told = _told(models_file, named, models, adapters, engine, engine_options, upstreams)
    engine, engine_options = _engine(engine, engine_options, upstreams)
    settings = load_settings(host=host, port=port, redis_url=redis_url, engine=engine)
    chosen = settings.redis_url if "redis_url" in settings.model_fields_set else None
    if file := models_file or ("" if told else settings.models):
        up_file(Path(file).expanduser(), data=data, redis_url=chosen, settings=settings)
        return
    run_all(
        _models((*named, *models), engine_options, settings),
        adapters,
        engine_options,
        workers=workers,
        data=data,
        redis_url=chosen,
        settings=settings,
    )


def _talks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of those that talk to a server."""
    options = (
        click.option(
            "--url",
            help="URL of any OpenAI-compatible server. The default is the one that `penstock up` runs in this folder, "
            f"else {API_URL}.",
        ),
        click.option(
            "--model", "-m", help="Model to talk to. The default is the first chat model that a worker serves."
        ),
        click.option("--system", "-s", default="", help="System prompt."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="NAME=VALUE",
            help="Parameter of the requests, such as temperature=0.7. May be repeated.",
        ),
        click.option("--api-key", envvar="OPENAI_API_KEY", help="API key. The default is OPENAI_API_KEY."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_talks
def chat(url: str | None, assignments: tuple[str, ...], **chosen: Any) -> None:
    """Chat with a model in the terminal.

    In a pipe, the whole standard input is one question, and the answer is printed."""
    with of_extra("chat"):
        from cli.chat import chat as talk
    from cli.parameters import Parameters

    sys.exit(talk(url or api_url(), parameters=Parameters(assignments), **chosen))


@main.command()
@click.argument("question", nargs=-1)
@_talks
def ask(question: tuple[str, ...], url: str | None, assignments: tuple[str, ...], **chosen: Any) -> None:
    """Ask one QUESTION and print the answer.

    What is piped in follows the question: `cat notes.txt | penstock ask Summarize this.`"""
    with of_extra("chat"):
        from cli.chat import ask as answer
    from cli.parameters import Parameters

    sys.exit(answer(" ".join(question), url or api_url(), parameters=Parameters(assignments), **chosen))


@main.command()
@click.option("--redis-url", help=REDIS_URL_HELP)
@click.option(
    "--seconds", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between two refreshes."
)
@click.option("--once", is_flag=True, help="Print the tables once and exit.")
def top(redis_url: str | None, seconds: float, once: bool) -> None:
    """Watch the models, the workers and the started jobs; q quits.

    In a pipe, or with its output in a file, it prints the tables once and exits."""
    with of_extra("chat"):
        from cli.top import top as watch

    watch(redis_url, seconds=seconds, once=once, target_wait_s=load_settings().target_wait_s)


jobs.add_command(rerun)
jobs.add_command(compare)
main.add_command(jobs)
main.add_command(keys)
main.add_command(models)
main.add_command(doctor)


def run() -> None:
    """Run the command; print our own errors as one sentence, not as a traceback."""
    try:
        main()
    except PenstockError as error:
        echo(f"penstock: {error}", err=True)
        sys.exit(EXIT_REFUSED)
