"""The names in a models file: each means one thing, and what refers to a model names one that is there."""

from collections.abc import Iterator

from shared.models_file.lines import Lines, Path
from shared.models_file.problems import Problem, did_you_mean, dotted
from shared.models_file.tables import Model, Tables


def problems_of_names(tables: Tables, lines: Lines) -> Iterator[Problem]:
    """Yield what is wrong between the tables of a file, each of which is right by itself."""
    for path, message in (*_twice(tables), *_missing(tables), *_contradictions(tables)):
        yield Problem(lines.of(path), dotted(path), message)


def _served(tables: Tables) -> Iterator[tuple[str, Path]]:
    for name, model in tables.models.items():
        yield name, ("models", name)
        for index, alias in enumerate(model.aliases):
            yield alias, ("models", name, "aliases", index)
        for adapter in model.adapters:
            yield adapter, ("models", name, "adapters", adapter)


def _twice(tables: Tables) -> Iterator[tuple[Path, str]]:
    """Names that come twice. The models' own are looked at first, so that the other place is the one that is wrong."""
    routes = [(name, ("routes", name)) for name in tables.routes]
    everything: list[tuple[str, Path]] = [*_served(tables), *routes]
    first: dict[str, Path] = {}
    for name, path in sorted(everything, key=lambda each: len(each[1])):
        if name in first:
            yield path, f"the name {name!r} is taken by {dotted(first[name])}"
        else:
            first[name] = path


def _missing(tables: Tables) -> Iterator[tuple[Path, str]]:
    served = [name for name, _ in _served(tables)]
    if tables.default and tables.default not in (*served, *tables.routes):
        yield ("default",), f"there is no model or route {tables.default!r}{did_you_mean(tables.default, served)}"
    for name, route in tables.routes.items():
        for index, each in enumerate(route.order):
            if each not in served:
                yield ("routes", name, "order", index), f"there is no model {each!r}{did_you_mean(each, served)}"
        if len(set(route.order)) < len(route.order):
            yield ("routes", name, "order"), "a model comes twice"


def _contradictions(tables: Tables) -> Iterator[tuple[Path, str]]:
    for name, model in tables.models.items():
        yield from ((("models", name, key), message) for key, message in _contradiction(model))


def _contradiction(model: Model) -> Iterator[tuple[str, str]]:
    computed_by = "upstreams" if model.upstreams else "run" if model.run else ""
    if model.upstreams and model.run:
        yield "run", "a model has either upstreams or a command to run"
    if computed_by and "engine" in model.model_fields_set and model.engine != "upstream":
        yield "engine", f"a model with {computed_by} is computed by that server"
    if computed_by and model.adapters:
        yield "adapters", f"a model with {computed_by} has no weights here that could be adapted"
    if "ready" in model.model_fields_set and not model.run:
        yield "ready", "this is for a model that is started by run"
    if model.run and "${PORT}" not in model.run:
        yield "run", "it must hold ${PORT}, the port on which the server is to listen"
    if computed_by and "urls" in model.options:
        yield "options", f"urls is what {computed_by} says"
