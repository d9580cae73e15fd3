"""A models file that is right by itself may lack something on this machine: this check says what."""

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pydantic import ByteSize

from shared.domain.errors import SettingsError
from shared.models_file.problems import Problem, dotted
from shared.models_file.reading import ModelsFile
from shared.models_file.secrets import variables_of
from shared.models_file.tables import Load
from shared.settings import Settings
from workers.loading.file_specs import file_specs
from workers.loading.loaders import class_of_its_own
from workers.loading.model_spec import ModelSpec, weights_bytes

LIBRARIES = {"native": "torch", "vllm": "vllm", "llamacpp": "llama_cpp", "upstream": "aiohttp", "command": "aiohttp"}


def lacking(file: ModelsFile, settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return a problem, in the order of their lines, for each source that is missing, each engine that is not
    installed, each environment variable that is not set, and for memory that models cannot have. Nothing is loaded or
    fetched."""
    problems: list[Problem] = []
    sizes: dict[str, int] = {}

    def note(name: str, key: str, messages: Iterable[str]) -> None:
        """Note problems of a model, with the line of the key that brings them about, or else of its table."""
        where = ("models", name)
        problems.extend(Problem(file.lines.of((*where, key)), dotted(where), message) for message in messages)

    for name in file.models:
        for key, messages in _variables(file, name, environment).items():
            note(name, key, messages)
        try:
            (spec,) = file_specs(file, [name], settings)
        except SettingsError as error:
            note(name, "source", [str(error).removeprefix(f"{file.path}, {dotted(('models', name))}: ")])
            continue
        note(name, "engine", _engine(spec))
        note(name, "source", _source(spec))
        sizes[name] = weights_bytes(Path(spec.source))
        note(name, "source", _too_large(file, sizes[name]))
    return sorted([*problems, *_memory(file, sizes)])


def _variables(file: ModelsFile, name: str, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Return a sentence for each variable of the model that is not set, by the key that names it first."""
    found: dict[str, list[str]] = {}
    told: set[str] = set()
    for key in ("options", "upstreams", "run"):
        for variable in variables_of(file.models[name].model_dump(include={key})):
            if variable not in told and not environment.get(variable, "").strip():
                told.add(variable)
                found.setdefault(key, []).append(f"the environment variable {variable} is not set")
    return found


def _engine(spec: ModelSpec) -> Iterator[str]:
    own = class_of_its_own(spec.engine)
    library = own.module.partition(".")[0] if own else LIBRARIES.get(spec.engine, "")
    if library and not (find_spec(library) or Path(f"{library}.py").is_file() or Path(library).is_dir()):
        yield f"the engine {spec.engine} needs the package {library}, which is not installed"


def _source(spec: ModelSpec) -> Iterator[str]:
    """A hub id has an owner; what has none, and is no folder, is most likely a folder that is elsewhere."""
    if spec.engine in ("native", "vllm") and "/" not in spec.source and not Path(spec.source).exists():
        yield f"there is no folder {spec.source} below root, and a hub id would be like OWNER/{spec.source}"


def _too_large(file: ModelsFile, size: int) -> Iterator[str]:
    """Tell a model whose weights alone are larger than the memory that the file gives to all models."""
    memory = file.host.memory
    if memory is not None and size > memory:
        yield f"its weights alone take {_human(size)}, more than host.memory, {_human(memory)}"


def _memory(file: ModelsFile, sizes: Mapping[str, int]) -> Iterator[Problem]:
    """Tell models that never go and do not fit together into that memory, by their weights alone."""
    memory = file.host.memory
    lasting = {name: size for name, size in sizes.items() if _stays(file, name)}
    if memory is not None and len(lasting) > 1 and sum(lasting.values()) > memory:
        names = ", ".join(lasting)
        message = f"{_human(memory)} cannot hold at once what is pinned or loaded at the start: {names}"
        yield Problem(file.lines.of(("host", "memory")), "host.memory", message)


def _stays(file: ModelsFile, name: str) -> bool:
    model = file.models[name]
    return model.pin or (model.load is Load.AT_START and model.keep_alive == float("inf"))


def _human(size: int) -> str:
    return ByteSize(size).human_readable()
