"""Model loading makes an engine of a model's name: `SOURCE`, `NAME=SOURCE` or `NAME,NAME=SOURCE`, where a source is
`builtin`, `scripted`, a local folder or a hub id."""

import asyncio
import re
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path

from shared.domain.errors import SettingsError
from shared.domain.job import ModelInfo
from shared.settings import Settings
from workers.engines.base import Engine
from workers.engines.scripted import VOCABULARY, ScriptedEngine
from workers.process.single_thread import SingleThread
from workers.scheduling.engine_limits import EngineLimits

BUILTIN = Path(__file__).parent / "models" / "penstock-tiny"
SCRIPTED_CONTEXT = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn/models)/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`adapters`: name and source of each. `aliases`: further names of the model."""

    name: str
    source: str
    adapters: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()


def parse_specs(models: Seq[str], adapters: Seq[str] = ()) -> list[ModelSpec]:
    """Parse the names of models. `adapters`: `NAME=SOURCE`, or `NAME=SOURCE@MODEL` if there are several models. Raises
    SettingsError for a name that no queue can have or that comes twice, and for a folder that holds no model."""
    specs = {spec.name: spec for spec in map(_model, models)}
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


def _model(text: str) -> ModelSpec:
    _require_no_url("MODEL", text)
    name, _, source = text.rpartition("=")
    source = str(BUILTIN) if source in ("builtin", BUILTIN.name) else source
    source = _folder("MODEL", source)
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SettingsError(f"MODEL: {folder} is a folder without a config.json, not a Hugging Face model")
    names = name.split(",") if name else [folder.resolve().name if folder.is_dir() else source]
    for each in names:
        _require_name("MODEL", each)
    return ModelSpec(names[0], source, aliases=tuple(names[1:]))


def _folder(what: str, source: str) -> str:
    """The source, if it can be one. Raises SettingsError for a local one that is missing, or no folder."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return str(path)
    if source.endswith(".gguf"):
        raise SettingsError(f"{what}: {source} is GGUF, which is not loaded; name a folder or hub id with safetensors")
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
    if not NAME.fullmatch(name):
        raise SettingsError(f"{what}: {name!r} cannot be a model's name (letters, digits, '.', '_', '-', '/')")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready, and the thread that computes it. `infos` describes it under each of its names, alone and
    with each of its adapters."""

    infos: list[ModelInfo]
    engine: Engine
    thread: SingleThread


async def load(spec: ModelSpec, settings: Settings) -> Loaded:
    """Load a model in a thread of its own. Raises SettingsError, in one sentence, for one that cannot be loaded."""
    thread = SingleThread(f"engine {spec.name}")
    engine = await asyncio.wrap_future(thread.submit(lambda: load_engine(spec, settings)))
    info = ModelInfo(
        name=spec.name,
        engine=engine.kind,
        context_length=engine.limits.context_length,
        created_s=int(time.time()),
        capabilities=_capabilities(engine),
        slots=engine.limits.sequences_max,
        prompt_chars_max=_prompt_chars_max(engine),
    )
    aliases = [replace(info, name=name) for name in spec.aliases]
    adapted = [replace(info, name=name, parent=spec.name) for name, _ in spec.adapters]
    return Loaded([info, *aliases, *adapted], engine, thread)


def _prompt_chars_max(engine: Engine) -> int:
    """The most characters of a prompt; 0, unknown, for a model that only makes vectors: it may cut its texts, or take a
    long word for one token."""
    return engine.limits.context_length * engine.tokenizer.token_chars_max if engine.writes else 0


def _capabilities(engine: Engine) -> tuple[str, ...]:
    written = engine.tokenizer.abilities if engine.writes else frozenset()
    able = {
        "chat": engine.writes,
        "completions": engine.writes,
        "tools": "tools" in written,
        "reasoning": "reasoning" in written,
        "structured_outputs": "structured_outputs" in written,
        "embeddings": engine.embedder is not None and engine.embedder.pair is None,
        "rerank": engine.embedder is not None,
    }
    return tuple(name for name, can in able.items() if can)


def load_engine(spec: ModelSpec, settings: Settings) -> Engine:
    if spec.source == "scripted":
        if spec.adapters:
            raise SettingsError("ADAPTER: the scripted engine has no weights that could be adapted")
        limits = EngineLimits(
            sequences_max=settings.sequences_max,
            batch_tokens_max=settings.batch_tokens_max,
            context_length=settings.context_length or SCRIPTED_CONTEXT,
            vocabulary=VOCABULARY,
            prefix_cache=settings.prefix_cache,
        )
        return ScriptedEngine(limits=limits, step_ms=settings.scripted_step_ms, tokens=settings.scripted_tokens)
    from workers.engines.native.loader import (
        load_torch_engine,  # the optional heavy part: the scripted engine needs no torch
    )

    return load_torch_engine(spec.source, settings, adapters=spec.adapters)
