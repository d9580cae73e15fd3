"""A models file that is right by itself may lack something on this machine: this check says what."""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pydantic import ByteSize

from shared.domain.errors import SettingsError
from shared.models_file.problems import dotted
from shared.models_file.reading import ModelsFile
from shared.models_file.secrets import variables_of
from shared.models_file.tables import Load
from shared.settings import Settings
from workers.loading.file_specs import file_specs
from workers.loading.loaders import class_of_its_own
from workers.loading.model_spec import ModelSpec, weights_bytes

LIBRARIES = {"native": "torch", "vllm": "vllm", "llamacpp": "llama_cpp", "upstream": "aiohttp", "command": "aiohttp"}


def lacking(file: ModelsFile, settings: Settings, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield a sentence for each source that is missing, each engine that is not installed, each environment variable
    that is not set, and for memory that models cannot have. Nothing is loaded or fetched."""
    sizes: dict[str, int] = {}
    for name in file.models:
        where = dotted(("models", name))
        yield from (f"{where}: {problem}" for problem in _variables(file, name, environment))
        try:
            (spec,) = file_specs(file, [name], settings)
        except SettingsError as error:
            yield str(error).removeprefix(f"{file.path}, ")
            continue
        yield from (f"{where}: {problem}" for problem in (*_engine(spec), *_source(spec)))
        sizes[name] = weights_bytes(Path(spec.source))
    yield from _memory(file, sizes)


def _variables_of(file: ModelsFile, name: str) -> list[str]:
    return list(dict.fromkeys(variables_of(file.models[name].model_dump(include={"options", "upstreams", "run"}))))


def _variables(file: ModelsFile, name: str, environment: Mapping[str, str]) -> Iterator[str]:
    for variable in _variables_of(file, name):
        if not environment.get(variable, "").strip():
            yield f"the environment variable {variable} is not set"


def _engine(spec: ModelSpec) -> Iterator[str]:
    own = class_of_its_own(spec.engine)
    library = own.module.partition(".")[0] if own else LIBRARIES.get(spec.engine, "")
    if library and not (find_spec(library) or Path(f"{library}.py").is_file() or Path(library).is_dir()):
        yield f"the engine {spec.engine} needs the package {library}, which is not installed"


def _source(spec: ModelSpec) -> Iterator[str]:
    """A hub id has an owner; what has none, and is no folder, is most likely a folder that is elsewhere."""
    if spec.engine in ("native", "vllm") and "/" not in spec.source and not Path(spec.source).exists():
        yield f"there is no folder {spec.source} below root, and a hub id would be like OWNER/{spec.source}"


def _memory(file: ModelsFile, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield what does not fit into the machine's memory as far as the file gives it, by the weights alone."""
    if (memory := file.host.memory) is None:
        return
    for name, size in sizes.items():
        if size > memory:
            what = f"its weights alone take {_human(size)}, more than host.memory, {_human(memory)}"
            yield f"{dotted(('models', name))}: {what}"
    lasting = {name: size for name, size in sizes.items() if _stays(file, name)}
    if len(lasting) > 1 and sum(lasting.values()) > memory:
        names = ", ".join(lasting)
        yield f"host.memory: {_human(memory)} cannot hold at once what is pinned or loaded at the start: {names}"


def _stays(file: ModelsFile, name: str) -> bool:
    model = file.models[name]
    return model.pin or (model.load is Load.AT_START and model.keep_alive == float("inf"))


def _human(size: int) -> str:
    return ByteSize(size).human_readable()
