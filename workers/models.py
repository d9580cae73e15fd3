"""From the name of a model to a loaded engine: `SOURCE` or `NAME=SOURCE`, where a source is `builtin`, `scripted`, a
local folder or a hub id."""

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SettingsError
from shared.job import ModelInfo
from shared.settings import Settings
from workers.call_thread import CallThread
from workers.engine.base import Engine
from workers.engine.scripted import VOCABULARY, ScriptedEngine
from workers.limits import Limits

BUILTIN = Path(__file__).parent / "models" / "penstock-tiny"
SCRIPTED_CONTEXT = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    source: str


def parse_spec(text: str) -> ModelSpec:
    """Raises SettingsError for a name that cannot be a queue's, or a folder that is no model."""
    name, _, source = text.rpartition("=")
    source = str(BUILTIN) if source in ("builtin", BUILTIN.name) else source
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SettingsError(f"MODEL: {folder} is a folder without a config.json, not a Hugging Face model")
        name, source = name or folder.resolve().name, str(folder)
    elif source.startswith((".", "/", "~")):
        raise SettingsError(f"MODEL: there is no folder {source}")
    name = name or source
    if not NAME.fullmatch(name):
        raise SettingsError(f"MODEL: {name!r} cannot be a model's name (letters, digits, '.', '_', '-', '/')")
    return ModelSpec(name, source)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready, and the thread that computes it."""

    info: ModelInfo
    engine: Engine
    thread: CallThread


async def load(spec: ModelSpec, settings: Settings) -> Loaded:
    """Raises SettingsError, in one sentence, for a model that cannot be loaded."""
    thread = CallThread(f"engine {spec.name}")
    info, engine = await asyncio.wrap_future(thread.submit(lambda: load_engine(spec, settings)))
    return Loaded(info, engine, thread)


def load_engine(spec: ModelSpec, settings: Settings) -> tuple[ModelInfo, Engine]:
    engine = _engine(spec, settings)
    info = ModelInfo(
        name=spec.name,
        engine=engine.kind,
        context_length=engine.limits.context_length,
        created_s=int(time.time()),
    )
    return info, engine


def _engine(spec: ModelSpec, settings: Settings) -> Engine:
    if spec.source == "scripted":
        limits = Limits(
            sequences_max=settings.sequences_max,
            batch_tokens_max=settings.batch_tokens_max,
            context_length=settings.context_length or SCRIPTED_CONTEXT,
            vocabulary=VOCABULARY,
            prefix_cache=settings.prefix_cache,
        )
        return ScriptedEngine(limits=limits, step_ms=settings.scripted_step_ms, tokens=settings.scripted_tokens)
    from workers.engine.loader import load_torch_engine  # the optional heavy part: the scripted engine needs no torch

    return load_torch_engine(spec.source, settings)
