"""A command that needs a package which is not installed names the extra that brings it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """Import what the extra brings. Raises ClickException, with the remedy, for a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = f"pip install 'penstock[{extra}]', or '.[{extra}]' in a checkout"
        raise click.ClickException(f"This needs the package {error.name}, which is not installed: {remedy}.") from error
