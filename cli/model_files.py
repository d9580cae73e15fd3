"""`penstock models pull` and `rm`: the files of models on this machine."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from cli.backend import Backend, with_backend
from cli.model_caches import Progress, cached, copy, fetch, remove, used_by_process
from cli.model_orders import UNLOADED
from cli.terminal import echo
from shared.catalog.model_states import model_objects
from shared.domain.errors import InvalidRequest, QueueUnavailable
from shared.models_file.reading import read
from shared.settings import Settings, load_settings

WITHOUT_FILES = ("upstream", "command", "scripted")
GIB, MIB = 2**30, 2**20

models_file_option = click.option(
    "--models",
    "models_file",
    default="",
    metavar="FILE",
    help="Models file, whose names SOURCE may be. The default is PENSTOCK_MODELS.",
)


@click.command()
@click.argument("source")
@click.option("--to", type=click.Path(path_type=Path), help="Folder for the files, instead of the hub's cache.")
@click.option("--revision", default="", help="Revision on the hub. The default is PENSTOCK_REVISION.")
@click.option(
    "--include", multiple=True, help="Fetch only files like this one, such as '*Q4_K_M.gguf'. May be repeated."
)
@models_file_option
def pull(source: str, to: Path | None, revision: str, include: Sequence[str], models_file: str) -> None:
    """Fetch a model's files before it is loaded.

    SOURCE is a name in the models file, or the id of a model on Hugging Face (on ModelScope with
    PENSTOCK_HUB=modelscope), or a folder or a file, which is copied to --to, for example from a network drive. A
    fetch that broke off goes on where it was; a copy begins again."""
    source, settings = _resolved(source, models_file)
    local = Path(source).expanduser()
    with _shown(source) as progress:
        if local.exists():
            if to is None:
                raise InvalidRequest(f"{source} is on this machine already; --to copies it.")
            folder = copy(local, to, progress=progress)
        else:
            where = revision or settings.revision
            folder = fetch(source, settings.hub, revision=where, include=include, to=to, progress=progress)
    echo(folder)


@contextmanager
def _shown(source: str) -> Iterator[Progress]:
    """Show the bytes on standard error: as a bar on a terminal, and else as a line for each tenth."""
    with click.progressbar(length=1, label=source, file=sys.stderr, item_show_func=lambda text: text) as bar:
        told = -1

        def progress(done: int, total: int) -> None:
            nonlocal told
            bar.length = max(total, 1)
            if sys.stderr.isatty():
                bar.update(done - bar.pos, f"{_size(done)} of {_size(total)}")
            elif (tenth := 10 * done // max(total, 1)) > told:
                told = tenth
                echo(f"{tenth}0 %: {_size(done)} of {_size(total)}", err=True)

        yield progress


@click.command()
@click.argument("source")
@click.option("--yes", "-y", is_flag=True, help="Remove without a question.")
@models_file_option
@click.pass_obj
def rm(redis_url: str | None, source: str, yes: bool, models_file: str) -> None:
    """Remove a fetched model's files from the hub's cache.

    SOURCE is a name in the models file, or the id of a model on Hugging Face (on ModelScope with
    PENSTOCK_HUB=modelscope). A model that is loaded is not removed, and neither is a folder outside of the cache."""
    source, settings = _resolved(source, models_file)
    folder, size = cached(source, settings.hub)
    with suppress(QueueUnavailable):  # without the queue, what this machine's processes have decides
        with_backend(redis_url, lambda backend: _require_unused(backend, source))
    if process := used_by_process(source, folder):
        raise InvalidRequest(f"{source} is in use by the process {process}.")
    if not yes:
        click.confirm(f"Remove {folder} ({_size(size)})?", abort=True)
    remove(folder)
    echo(f"{source} removed, {_size(size)}")


def _resolved(source: str, models_file: str) -> tuple[str, Settings]:
    """Return the source of a model of the models file, with the settings that the file gives it; anything else is a
    source itself. Raises InvalidRequest for a model that has no files on this machine."""
    from workers.loading.file_specs import engine_in, source_in

    settings = load_settings()
    named = models_file or settings.models
    if not named:
        return source, settings
    file = read(Path(named).expanduser())
    try:
        model = file.model_of(source)
    except KeyError:
        return source, settings
    if (engine := engine_in(file, model, settings)) in WITHOUT_FILES:
        raise InvalidRequest(f"{model} has no files here: its engine is {engine}.")
    return source_in(file, model, settings), settings.model_copy(update=file.models[model].settings)


async def _require_unused(backend: Backend, source: str) -> None:
    """Raise InvalidRequest if the model is loaded under its own name."""
    for model in await model_objects(backend.model_registry, backend.hosting):
        loaded = model["workers"] or model["state"] not in UNLOADED
        if loaded and source in (model["id"], *(host["source"] for host in model["hosts"])):
            raise InvalidRequest(f"{source} is loaded as {model['id']}: unload it first.")


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
