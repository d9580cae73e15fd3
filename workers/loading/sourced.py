"""A source as a loaded model."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from shared.domain.errors import InvalidRequest
from shared.domain.job import Kind, ModelInfo
from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import Delivery
from workers.loading.loaded import Loaded
from workers.loading.model_spec import ModelSpec
from workers.process.single_thread import SingleThread
from workers.runners.base import Runner
from workers.runners.outbox import Outbox
from workers.runners.source_runner import GATHER_S, SourceRunner
from workers.runs.run import JobRun
from workers.runs.text_run import TextRun
from workers.runs.vector_run import VectorRun
from workers.source import ABILITIES, ChatSource, Resume


def sourced(
    spec: ModelSpec,
    source: ChatSource,
    thread: SingleThread,
    *,
    kind: str,
    sequences_max: int,
    gather_s: float = GATHER_S,
) -> Loaded:
    """Open a source in `thread`, in which its event loop then runs. At most `sequences_max` answers are computed at a
    time, and what they say within `gather_s` is delivered together. Raises what the source's `open` raises."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(source.open())
    except BaseException:
        loop.close()
        raise
    infos = _infos(spec, source, kind=kind, sequences_max=sequences_max)

    def begin(delivery: Delivery) -> JobRun:
        return begin_sourced(delivery, source)

    def make_runner(outbox: Outbox, metrics: WorkerMetrics, more_places: Callable[[], None]) -> Runner:
        return SourceRunner(
            spec.name,
            source,
            loop,
            thread,
            sequences_max=sequences_max,
            gather_s=gather_s,
            outbox=outbox,
            metrics=metrics,
            more_places=more_places,
        )

    return Loaded(infos, begin, make_runner, close=lambda: _close(loop, thread))


def _close(loop: asyncio.AbstractEventLoop, thread: SingleThread) -> None:
    """Close a loop that no runner has run; one that ran is closed."""
    thread.submit(loop.close)


def begin_sourced(delivery: Delivery, source: ChatSource) -> JobRun:
    """The run of a delivery. Raises InvalidRequest for what the source cannot do."""
    match delivery.job.kind:
        case Kind.CHAT | Kind.COMPLETION:
            return TextRun(delivery, source)
        case Kind.EMBEDDING:
            return VectorRun(delivery, source)
        case Kind.TOKENS:
            message = f"The model '{delivery.job.model}' has no tokenizer here; its answers' usage counts its tokens."
            raise InvalidRequest(message, param="model")
        case unknown:
            assert_never(unknown)


def _infos(spec: ModelSpec, source: ChatSource, *, kind: str, sequences_max: int) -> list[ModelInfo]:
    """The model as the registry lists it, under each of its names."""
    info = ModelInfo(
        name=spec.name,
        engine=kind,
        context_length=source.context_length,
        created_s=int(time.time()),
        capabilities=_capabilities(source),
        slots=sequences_max,
        resume=Resume(source.resume).promise,
    )
    return [replace(info, name=name) for name in (spec.name, *spec.aliases)]


def _capabilities(source: ChatSource) -> tuple[str, ...]:
    able = {
        "chat": "chat" in source.serves,
        "completions": "complete" in source.serves,
        "embeddings": "embed" in source.serves,
        "rerank": bool({"embed", "rerank"} & source.serves),
    }
    named = [ability for ability in ABILITIES if ability in source.abilities]
    return (*(name for name, can in able.items() if can), *named)
