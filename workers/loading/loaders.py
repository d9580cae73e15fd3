"""The table of engines: which function loads the models of each.

A loader is `load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded`. It blocks, and it is called in
the model's own thread, in which the engine may compute later. It raises SettingsError, in one sentence, for a model
that it cannot load. Its module is imported only if a model needs it, and it alone imports the engine's library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from shared.domain.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """`path` is the module and its function. `files` is true if the source of its models is a folder, a file or a hub
    id, and false if it is only a name. With a `suffix` it is a file with this ending, or a folder with such a file."""

    path: str
    files: bool = True
    suffix: str = ""


LOADERS = {
    "upstream": Loader(path="workers.engines.upstream.loader:load", files=False),
    "command": Loader(path="workers.engines.command.loader:load", files=False),
    "native": Loader(path="workers.engines.native.loader:load"),
    "vllm": Loader(path="workers.engines.vllm.loader:load"),
    "scripted": Loader(path="workers.engines.scripted:load", files=False),
    "llamacpp": Loader(path="workers.engines.llamacpp.loader:load", suffix=".gguf"),
}
CUSTOM = Loader(path="workers.engines.custom.loader:load", files=False)
ENTRY_POINTS = "penstock.engines"


def loader_of(engine: str) -> Loader:
    """The loader of an engine. Raises SettingsError for one that does not exist."""
    if engine in LOADERS:
        return LOADERS[engine]
    if class_of_its_own(engine):
        return CUSTOM
    message = f"there are {', '.join(LOADERS)}, and your own, PACKAGE.MODULE:CLASS"
    raise SettingsError(f"ENGINE: there is no engine {engine!r}; {message}")


def class_of_its_own(engine: str) -> EntryPoint | None:
    """Return where a class or a loader of somebody else's is: PACKAGE.MODULE:NAME, or the entry point of that name."""
    if ":" in engine:
        return EntryPoint(engine, engine, ENTRY_POINTS)
    return next(iter(entry_points(group=ENTRY_POINTS, name=engine)), None)


def imported(loader: Loader) -> Callable[..., Any]:
    """The loader's function. Raises SettingsError if its library is not installed."""
    module, _, name = loader.path.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise SettingsError(f"ENGINE: {module} needs the package {error.name}, which is not installed") from error
    return function


def engine_of(source: str) -> str:
    """The engine that serves a source if none is named."""
    if source == "scripted":
        return source
    path = Path(source).expanduser()
    bare = path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))
    return "llamacpp" if bare or path.suffix == ".gguf" else "native"
