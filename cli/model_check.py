"""`penstock models check` and `schema`: a models file before it is used. They need no Redis."""

from pathlib import Path

import click

from cli.terminal import echo, echo_json
from shared.models_file.problems import Problem
from shared.models_file.reading import read
from shared.models_file.tables import json_schema
from shared.settings import load_settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Tell all that is wrong in a models file, and what it lacks on this machine.

    The exit status is 2 if the file cannot be used. A missing folder, engine or environment variable is a warning,
    since another machine may have it."""
    found = read(file.expanduser())
    try:
        from workers.loading.file_check import lacking
    except ModuleNotFoundError:  # an installation of the API alone has no engines
        warnings: list[Problem] = []
    else:
        warnings = lacking(found, load_settings())
    for warning in warnings:
        echo(f"{file}, {warning}", err=True)
    models, routes = len(found.models), len(found.routes)
    echo(f"{file}: {models} model{'s' * (models != 1)}, {routes} route{'s' * (routes != 1)}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of a models file, for editors."""
    echo_json(json_schema())
