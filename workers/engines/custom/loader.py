"""Loads what is somebody else's: a ChatSource, `package.module:Class`, or a loader of an engine that computes tokens,
`package.module:function`; or either by the name of an entry point of the group `penstock.engines`."""

import logging
import os
import sys
from inspect import isfunction
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.loading.loaded import Loaded
from workers.loading.loaders import class_of_its_own
from workers.loading.model_spec import ModelSpec
from workers.loading.options import validated
from workers.loading.sourced import sourced
from workers.process.single_thread import SingleThread
from workers.source import ABILITIES, ChatSource, Resume

log = logging.getLogger(__name__)


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Open a source, or call a loader of somebody else's. The working directory is searched for the module first, as
    Python itself would. Raises SettingsError for what is not there, is neither, or cannot be opened so."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _imported(spec.engine)
    try:
        if isinstance(found, type) and issubclass(found, ChatSource):
            return _opened(found, spec, settings, thread)
        loaded = found(spec, settings, thread) if isfunction(found) else None
    except SettingsError:
        raise
    except Exception as error:
        log.exception("an engine cannot be opened", extra={"engine": spec.engine})
        raise SettingsError(f"ENGINE: {spec.engine} cannot be opened: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, Loaded):
        message = "is no subclass of penstock.engines.ChatSource, and no function that returns a Loaded"
        raise SettingsError(f"ENGINE: {spec.engine} {message}")
    return loaded


def _imported(engine: str) -> Any:
    point = class_of_its_own(engine)
    assert point is not None, "the table of loaders found it"
    try:
        return point.load()
    except Exception as error:
        log.exception("an engine cannot be imported", extra={"engine": engine})
        raise SettingsError(f"ENGINE: {engine} cannot be imported: {type(error).__name__}: {error}") from error


def _opened(kind: type[ChatSource], spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    if spec.adapters:
        raise SettingsError(f"ADAPTER: the engine {spec.engine} has no weights that could be adapted")
    strict = type(kind.Options.__name__, (kind.Options,), {"model_config": ConfigDict(extra="forbid")})
    options: BaseModel = validated(spec.engine, spec.options, strict)
    source = kind(options)
    _require_sensible(spec.engine, source)
    return sourced(spec, source, thread, kind="custom", sequences_max=settings.sequences_max)


def _require_sensible(engine: str, source: ChatSource) -> None:
    if not source.serves:
        raise SettingsError(f"ENGINE: {engine} defines none of chat, complete, embed and rerank")
    if source.resume not in list(Resume):
        raise SettingsError(f"ENGINE: {engine} has resume {source.resume!r}; there are {', '.join(Resume)}")
    if unknown := sorted(source.abilities - set(ABILITIES)):
        raise SettingsError(f"ENGINE: {engine} has the ability {unknown[0]!r}; there are {', '.join(ABILITIES)}")
