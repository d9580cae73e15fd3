"""A model spec names what a worker serves: `SOURCE`, `NAME=SOURCE` or `NAME,NAME=SOURCE`, where a source is `builtin`,
`scripted`, a local folder, a hub id, or what else an engine takes."""

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.domain.errors import SettingsError
from shared.domain.job import MODEL_NAME
from shared.settings import Settings
from workers.loading.loaders import engine_of, loader_of
from workers.loading.options import parse_options

WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")  # a folder may have the same weights in several
BUILTIN = Path(__file__).parent.parent / "models" / "penstock-tiny"
HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn/models)/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`adapters`: name and source of each. `aliases`: further names of the model. `engine` is in the table of loaders;
    `options` are for it alone, and it validates them. `recommended` are sampling parameters for what a request leaves
    open, and `settings` those of the model's own; both are by their names."""

    name: str
    source: str
    adapters: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()
    engine: str = "native"
    options: Mapping[str, Any] = field(default_factory=dict)
    recommended: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def specs_of(models: Seq[str], adapters: Seq[str], engine_options: Seq[str], settings: Settings) -> list[ModelSpec]:
    """Return the models that a command line and the settings name together. Raises SettingsError, as `parse_specs`
    does."""
    options = parse_options(engine_options, settings.engine_options)
    return parse_specs(models, adapters, engine=settings.engine, options=options)


def parse_specs(
    models: Seq[str], adapters: Seq[str] = (), *, engine: str = "", options: Mapping[str, Any] | None = None
) -> list[ModelSpec]:
    """Parse the names of models. `adapters`: `NAME=SOURCE`, or `NAME=SOURCE@MODEL` if there are several models.
    `engine` and `options` are those of all models; without an engine each source has the one that fits it. Raises
    SettingsError for a name that no queue can have or that comes twice, for a folder that holds no model, and for an
    engine that does not exist."""
    given = [_model(text, engine, options or {}) for text in models]
    specs = {spec.name: spec for spec in given}
    for text in adapters:
        name, source, base = _adapter(text, list(specs))
        specs[base] = replace(specs[base], adapters=(*specs[base].adapters, (name, source)))
    names = [name for spec in specs.values() for name in (spec.name, *spec.aliases, *dict(spec.adapters))]
    if len(specs) < len(models) or len(set(names)) < len(names):
        raise SettingsError(f"MODEL: two models have the same name: {', '.join(names)}")
    return list(specs.values())


def _adapter(text: str, models: list[str]) -> tuple[str, str, str]:
    """The adapter's name, its source, and the model it belongs to."""
    _require_no_url("ADAPTER", text)
    before, _, base = text.rpartition("@")
    if base not in models:
        before, base = text, models[0]
        if len(models) > 1 or ("@" in text and not Path(text.partition("=")[2]).is_dir()):
            raise SettingsError(f"ADAPTER: {text} does not end in @ and a model that is served: {', '.join(models)}")
    name, _, source = before.partition("=")
    _require_name("ADAPTER", name)
    return name, _folder("ADAPTER", source), base


def _model(text: str, engine: str, options: Mapping[str, Any]) -> ModelSpec:
    _require_no_url("MODEL", text)
    name, _, source = text.rpartition("=")
    return spec_of(name.split(",") if name else [], source, engine=engine, options=options)


def spec_of(names: Seq[str], source: str, *, engine: str, options: Mapping[str, Any]) -> ModelSpec:
    """The spec of a model. Without an engine it has the one that fits its source, and without a name the source's own.
    Raises SettingsError, as `parse_specs` does."""
    engine = engine or engine_of(source)
    loader, own_name = loader_of(engine), source
    if loader.suffix:
        source = _file_or_folder(source, loader.suffix)
        own_name = Path(source).resolve().name.removesuffix(loader.suffix)
    elif loader.files:
        source = str(BUILTIN) if source in ("builtin", BUILTIN.name) else source
        source = _model_files(source)
        own_name = Path(source).resolve().name if Path(source).is_dir() else source
    names = names or [own_name]
    for each in names:
        _require_name("MODEL", each)
    return ModelSpec(names[0], source, aliases=tuple(names[1:]), engine=engine, options=options)


def weights_bytes(path: Path) -> int:
    """Return the bytes of the weights in a file, or in a folder in the format that is preferred; 0 if there are none.
    Raises OSError."""
    if path.is_file():
        return path.stat().st_size
    found = next((files for pattern in WEIGHTS if (files := list(path.glob(pattern)))), [])
    return sum(each.stat().st_size for each in found)


def adapter_source(source: str) -> str:
    """The source of an adapter, if it can be one. Raises SettingsError."""
    _require_no_url("ADAPTER", source)
    return _folder("ADAPTER", source)


def _model_files(source: str) -> str:
    source = _folder("MODEL", source)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise SettingsError(f"MODEL: {source} is a folder without a config.json, not a Hugging Face model")
    return source


def _file_or_folder(source: str, suffix: str) -> str:
    """The source, if it is a file with this ending or a folder that holds one. Raises SettingsError for any other."""
    path = Path(source).expanduser()
    found = source and ((path.is_file() and path.suffix == suffix) or (path.is_dir() and any(path.glob(f"*{suffix}"))))
    if not found:
        raise SettingsError(f"MODEL: there is no {suffix} file, and no folder with one, at {source or 'no path'}")
    return str(path)


def _folder(what: str, source: str) -> str:
    """The source, if it can be one. Raises SettingsError for a local one that is missing, or no folder."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return str(path)
    if source.endswith(".gguf"):
        raise SettingsError(f"{what}: {source} is GGUF, which only the engine llamacpp loads, and only as a model")
    if source and path.is_file():
        raise SettingsError(f"{what}: {source} is a file; name the folder with its config.json")
    if not source or source.startswith((".", "/", "~")):
        raise SettingsError(f"{what}: there is no folder {source}")
    return source


def _require_no_url(what: str, text: str) -> None:
    if "://" in text:
        page = HUB_PAGE.search(text)
        example = f"here {page[1]}" if page else "like Qwen/Qwen2.5-0.5B-Instruct"
        raise SettingsError(f"{what}: {text} is a URL; name a local folder or a hub id, {example}")


def _require_name(what: str, name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise SettingsError(f"{what}: {name!r} cannot be a model's name (letters, digits, '.', '_', '-', '/')")
