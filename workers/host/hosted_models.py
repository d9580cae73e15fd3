"""A models file asks this of a host: the models, each with the way in which it is loaded and its workers are
started."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.models_file.reading import ModelsFile
from shared.models_file.tables import Model
from workers.host.machine import Loading
from workers.loading.loaders import engine_of, loader_of
from workers.loading.model_spec import BUILTIN, weights_bytes

LOADED_SHARE = 1.25  # of its files, what a model takes once it is loaded, beside its process
TORCH_BYTES = 800 * 2**20  # a process with torch, and its cache of keys and values
PLAIN_BYTES = 200 * 2**20
COMPUTED_ELSEWHERE = ("upstream", "scripted")
ON_DEVICES = ("native", "vllm", "command")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedSpec:
    """A model as this host serves it. `names` are those that its worker serves: its own and its adapters'. A worker is
    `penstock worker` with `arguments` and `environment`; `digest` is that of both, and tells a worker that was started
    otherwise. It needs `devices` devices. `bytes_estimate` is what it takes, before it was measured; None if nobody can
    tell. `source` is where its files are, "" for a server's model."""

    name: str
    source: str
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    digest: str
    loading: Loading
    pinned: bool
    keep_alive_s: float
    least: int
    most: int
    devices: int
    bytes_estimate: int | None


def hosted_specs(file: ModelsFile, devices_max: int, engine: str = "") -> dict[str, HostedSpec]:
    """Return the models of a file, for a machine with so many devices. `engine` computes those that name none, and
    have no server; "" takes what fits each source."""
    return {name: _spec(name, model, file, devices_max, engine) for name, model in file.models.items()}


def _spec(name: str, model: Model, file: ModelsFile, devices_max: int, usual: str) -> HostedSpec:
    source = _source(name, model, file)
    chosen = model.engine or usual
    engine = _engine(model, source, chosen)
    arguments = tuple(_arguments(name, model, file, source, chosen))
    environment = {f"PENSTOCK_{key.upper()}": _text(value) for key, value in model.settings.items()}
    if file.host.devices == []:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    environment["PENSTOCK_RECOMMENDED"] = json.dumps(model.recommended.given)
    whole = json.dumps([arguments, sorted(environment.items())])
    return HostedSpec(
        name=name,
        source="" if model.upstreams or model.run else source,
        names=(name, *model.adapters),
        arguments=arguments,
        environment=environment,
        digest=hashlib.sha256(whole.encode()).hexdigest()[:16],
        loading=Loading(model.load.value),
        pinned=model.pin,
        keep_alive_s=model.keep_alive,
        least=model.workers[0],
        most=model.workers[1],
        devices=_devices(model, engine) if devices_max else 0,
        bytes_estimate=_bytes_estimate(engine, source),
    )


def _source(name: str, model: Model, file: ModelsFile) -> str:
    source = model.source or name
    return source if model.upstreams or model.run else file.located(source)


def _engine(model: Model, source: str, chosen: str) -> str:
    if model.upstreams:
        return "upstream"
    return "command" if model.run else chosen or engine_of(source)


def _arguments(name: str, model: Model, file: ModelsFile, source: str, chosen: str) -> Iterator[str]:
    yield f"{name}={source}"
    yield from (f"--adapter={adapter}={file.located(where)}" for adapter, where in model.adapters.items())
    options: dict[str, Any] = dict(model.options)
    if model.upstreams:
        yield "--engine=upstream"
        options["urls"] = [each.model_dump(exclude_unset=True) for each in model.upstreams]
    elif model.run:
        yield "--engine=command"
        options |= {"run": model.run, "ready": model.ready}
    elif chosen:
        yield f"--engine={chosen}"
    yield from (f"--engine-option={key}={json.dumps(value)}" for key, value in options.items())


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _devices(model: Model, engine: str) -> int:
    if engine == "scripted":
        return _count(model.options.get("devices", 0))
    if engine == "llamacpp":  # whether it was built for GPUs is known to its worker alone, so the file must say so
        named = model.settings.get("device", "auto") not in ("auto", "cpu")
        return int(named or model.options.get("gpu_layers", 0) != 0)
    if engine not in ON_DEVICES or model.settings.get("device") == "cpu":
        return 0
    return _count(model.options.get("tensor_parallel_size", 1))


def _count(told: object) -> int:
    """Return the option as a number; its worker refuses another value."""
    return told if isinstance(told, int) else 1


def _bytes_estimate(engine: str, source: str) -> int | None:
    if engine in COMPUTED_ELSEWHERE:
        return PLAIN_BYTES
    if engine == "vllm" or engine not in ("native", "llamacpp"):
        return None
    process = TORCH_BYTES if loader_of(engine).files and not loader_of(engine).suffix else PLAIN_BYTES
    try:
        weights = weights_bytes(BUILTIN if source in ("builtin", BUILTIN.name) else Path(source).expanduser())
    except OSError:  # its worker will say what is wrong with the files
        return None
    return process + int(LOADED_SHARE * weights) if weights else None
