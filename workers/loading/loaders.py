"""The table of engines: which function loads the models of each.

A loader is `load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded`. It blocks, and it is called in
the model's own thread, in which the engine may compute later. It raises SettingsError, in one sentence, for a model
that it cannot load. Its module is imported only if a model needs it, and it alone imports the engine's library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
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
    "native": Loader(path="workers.engines.native.loader:load"),
    "scripted": Loader(path="workers.engines.scripted:load", files=False),
    "llamacpp": Loader(path="workers.engines.llamacpp.loader:load", suffix=".gguf"),
}


def loader_of(engine: str) -> Loader:
    """The loader of an engine. Raises SettingsError for one that does not exist."""
    if engine not in LOADERS:
        raise SettingsError(f"ENGINE: there is no engine {engine!r}; there are {', '.join(LOADERS)}")
    return LOADERS[engine]


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
