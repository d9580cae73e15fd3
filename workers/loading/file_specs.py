"""A models file as model specs, for the worker that serves some of its models."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.domain.errors import SettingsError
from shared.models_file.problems import did_you_mean, dotted
from shared.models_file.reading import ModelsFile, read
from shared.models_file.tables import Model
from shared.settings import Settings
from workers.loading.loaders import engine_of, loader_of
from workers.loading.model_spec import ModelSpec, adapter_source, spec_of


def read_specs(path: Path, only: str, settings: Settings) -> list[ModelSpec]:
    """Read a models file for a worker of these models: names with commas between them, or '' for all. Raises
    SettingsError."""
    names = [name.strip() for name in only.split(",")] if only else []
    return file_specs(read(path.expanduser()), names, settings)


def file_specs(file: ModelsFile, only: Seq[str], settings: Settings) -> list[ModelSpec]:
    """Return the specs of the models with these names, or of all if there are none. A name may be an alias or an
    adapter's. Raises SettingsError, which names the model, for one that is not in the file or whose source is
    missing."""
    names = dict.fromkeys(_model_named(file, name) for name in only) if only else file.models
    return [_spec(file, name, settings) for name in names]


def worker_settings(specs: Seq[ModelSpec], settings: Settings) -> Settings:
    """Return the settings of the worker that serves these models: those that all of them give alike."""
    first, *others = [dict(spec.settings) for spec in specs]
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    return settings.model_copy(update=common)


def engine_in(file: ModelsFile, model: str, settings: Settings) -> str:
    """Return the name of the engine that computes a model of the file."""
    table = file.models[model]
    if table.upstreams:
        return "upstream"
    if table.run:
        return "command"
    return table.engine or settings.engine or engine_of(file.located(table.source or model))


def source_in(file: ModelsFile, model: str, settings: Settings) -> str:
    """Return the source of a model of the file: a path, or what else its engine takes. Raises SettingsError for an
    engine that does not exist."""
    source = file.models[model].source or model
    return file.located(source) if loader_of(engine_in(file, model, settings)).files else source


def _model_named(file: ModelsFile, name: str) -> str:
    try:
        return file.model_of(name)
    except KeyError:
        known = list(file.models)
        raise SettingsError(f"{file.path} has no model {name!r}{did_you_mean(name, known)}") from None


def _spec(file: ModelsFile, name: str, settings: Settings) -> ModelSpec:
    table = file.models[name]
    try:
        spec = spec_of(
            [name, *table.aliases],
            source_in(file, name, settings),
            engine=engine_in(file, name, settings),
            options=_options(table),
        )
        adapters = tuple((each, adapter_source(file.located(source))) for each, source in table.adapters.items())
    except SettingsError as error:
        what = dotted(("models", name))
        raise SettingsError(f"{file.path}, {what}: {str(error).removeprefix('MODEL: ')}") from None
    return replace(spec, adapters=adapters, recommended=table.recommended.given, settings=table.settings)


def _options(table: Model) -> dict[str, Any]:
    if table.upstreams:
        return {**table.options, "urls": [each.model_dump(exclude_unset=True) for each in table.upstreams]}
    if table.run:
        return {**table.options, "run": table.run, "ready": table.ready}
    return dict(table.options)
