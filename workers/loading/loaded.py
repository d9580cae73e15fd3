"""A loaded model: what a worker needs of it, whoever computes it."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shared.domain.job import ModelInfo
from shared.domain.suitability import require_taken
from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import Delivery, Quota
from shared.settings import Settings
from workers.loading.loaders import imported, loader_of
from workers.loading.model_spec import ModelSpec
from workers.loading.options import recommended_of, resolved_options
from workers.process.load_progress import WEIGHTS, tell
from workers.process.single_thread import SingleThread
from workers.process.succession import wait_for_predecessors
from workers.protocols import Engine, Model
from workers.runners.base import MakeRunner, Runner
from workers.runners.engine_loop import EngineLoop
from workers.runners.outbox import Outbox
from workers.runs.begin import begin
from workers.runs.run import JobRun


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready. `infos` describes it under each of its names, alone and with each of its adapters. `begin`
    makes the run of a delivery; it blocks, is called in a thread, and raises InvalidRequest. `make_runner` is called
    once. `close` frees what is left when the runner has stopped; it may block. With
    `quotas`, only jobs that one of them has room for are claimed."""

    infos: list[ModelInfo]
    begin: Callable[[Delivery], JobRun]
    make_runner: MakeRunner
    close: Callable[[], None] = _nothing
    quotas: tuple[Quota, ...] = ()


async def load(spec: ModelSpec, settings: Settings) -> Loaded:
    """Load a model in a thread of its own, with the settings that its spec gives it. Raises SettingsError, in one
    sentence, for one that cannot be loaded."""
    thread = SingleThread(f"engine {spec.name}")
    own_settings = settings.model_copy(update=dict(spec.settings))
    recommended = {**recommended_of(settings.recommended), **spec.recommended}
    resolved = replace(spec, options=resolved_options(spec.engine, spec.options))

    def call() -> Loaded:
        load_it = imported(loader_of(spec.engine))  # takes seconds, and little memory
        wait_for_predecessors()
        tell(WEIGHTS)
        loaded: Loaded = load_it(resolved, own_settings, thread)
        return loaded

    loaded = await asyncio.wrap_future(thread.submit(call))
    told = {name: value for name, value in recommended.items() if name in ("temperature", "top_p")}
    infos = [replace(info, **told) for info in loaded.infos]
    return replace(loaded, infos=infos, begin=partial(_begin_job, loaded.begin, infos, recommended))


def _begin_job(
    begin_run: Callable[[Delivery], JobRun], infos: list[ModelInfo], recommended: Mapping[str, Any], delivery: Delivery
) -> JobRun:
    """Begin a job with the recommended sampling parameters in place of those that it leaves open. Raises InvalidRequest
    for what the model cannot take."""
    require_taken(delivery.job.request, infos[0])
    sampling = delivery.job.sampling
    left_open = {name: value for name, value in recommended.items() if getattr(sampling, name) is None}
    if left_open:
        delivery = replace(delivery, job=replace(delivery.job, sampling=replace(sampling, **left_open)))
    return begin_run(delivery)


def stepped(
    infos: list[ModelInfo], engine: Engine, thread: SingleThread, *, close: Callable[[], None] = _nothing
) -> Loaded:
    """An engine that was loaded in `thread`, computed there in steps of ours."""

    def make_runner(outbox: Outbox, metrics: WorkerMetrics, more_places: Callable[[], None]) -> Runner:
        return EngineLoop(infos[0].name, engine, thread, outbox=outbox, metrics=metrics, more_places=more_places)

    return Loaded(infos, partial(begin, engine), make_runner, close)


def infos_of(spec: ModelSpec, model: Model) -> list[ModelInfo]:
    """A model that speaks tokens, as the registry lists it: first itself, then its other names, then its adapters."""
    info = ModelInfo(
        name=spec.name,
        engine=model.kind,
        context_length=model.limits.context_length,
        created_s=int(time.time()),
        capabilities=_capabilities(model),
        slots=model.limits.sequences_max,
        prompt_chars_max=_prompt_chars_max(model),
        dtype=model.dtype,
        temperature=model.defaults.temperature,
        top_p=model.defaults.top_p,
    )
    aliases = [replace(info, name=name) for name in spec.aliases]
    adapted = [replace(info, name=name, parent=spec.name) for name, _ in spec.adapters]
    return [info, *aliases, *adapted]


def _prompt_chars_max(model: Model) -> int:
    """The most characters of a prompt; 0, unknown, for a model that only makes vectors: it may cut its texts, or take a
    long word for one token."""
    return model.limits.context_length * model.tokenizer.token_chars_max if model.writes else 0


def _capabilities(model: Model) -> tuple[str, ...]:
    written = model.tokenizer.abilities if model.writes else frozenset()
    able = {
        "chat": model.writes,
        "completions": model.writes,
        "tools": "tools" in written,
        "reasoning": "reasoning" in written,
        "structured_outputs": "structured_outputs" in written,
        "embeddings": model.embedder is not None and model.embedder.pair is None,
        "rerank": model.embedder is not None,
    }
    return tuple(name for name, can in able.items() if can)
