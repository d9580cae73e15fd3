"""Starts vLLM's engine for a model. Its core and its workers are processes of their own, which end with this one."""

import logging
import os
import time
from functools import partial
from typing import Any

from transformers import AutoTokenizer, GenerationConfig
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.transformers_utils.config import try_get_generation_config
from vllm.v1.engine.llm_engine import LLMEngine

from shared.domain.errors import SettingsError
from shared.observability.metrics import WorkerMetrics
from shared.settings import Settings
from workers.engines.generation_config import defaults_of, eos_ids_of
from workers.engines.vllm import parent_death
from workers.engines.vllm.logs import log_as_we_do
from workers.engines.vllm.model import VllmEmbedder, VllmModel
from workers.engines.vllm.options import engine_args
from workers.engines.vllm.resume import Resume, prepare
from workers.engines.vllm.runner import VllmRunner
from workers.engines.vllm.stats import Stats
from workers.loading.loaded import Loaded, infos_of
from workers.loading.model_spec import ModelSpec
from workers.process.single_thread import SingleThread
from workers.protocols import Embedder
from workers.runners.base import Runner
from workers.runners.outbox import Outbox
from workers.runs.begin import begin
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.text.chat_tokenizer import ChatTokenizer

log = logging.getLogger(__name__)
STOP_S = 2  # for vLLM's processes to end by themselves


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Start vLLM with the model, to be driven in `thread`. Raises SettingsError for what vLLM does not take."""
    began = time.monotonic()
    _set_environment(settings)
    config = _config(spec, settings)
    resume = prepare(config)
    stats = Stats()
    log.info("vLLM loads the model", extra={"source": spec.source, "second_runner": resume.second_runner})
    llm = _start(spec, config, stats)
    model = _model(spec, llm, settings)
    loras = {name: LoRARequest(name, number, source) for number, (name, source) in enumerate(spec.adapters, start=1)}
    for lora in loras.values():
        _load_adapter(llm, lora)
    log.info("model loaded", extra=_told(spec, model, resume) | {"seconds": round(time.monotonic() - began, 1)})

    def make_runner(outbox: Outbox, metrics: WorkerMetrics, more_places: Any) -> Runner:
        runner = partial(VllmRunner, spec.name, llm, model, thread, resume=resume, loras=loras, stats=stats)
        return runner(outbox=outbox, metrics=metrics, more_places=more_places)

    return Loaded(infos_of(spec, model), partial(begin, model), make_runner, partial(llm.engine_core.shutdown, STOP_S))


def _set_environment(settings: Settings) -> None:
    """Set what vLLM reads from the environment, in this process and those that it starts."""
    parent_death.announce()
    log_as_we_do(settings.log_level)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if settings.hub == "modelscope":
        os.environ["VLLM_USE_MODELSCOPE"] = "True"
    if settings.deterministic:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"


def _config(spec: ModelSpec, settings: Settings) -> VllmConfig:
    try:
        return engine_args(spec, settings).create_engine_config()
    except (OSError, ValueError, ImportError, KeyError, NotImplementedError) as error:
        raise SettingsError(_refusal(spec, error)) from error


def _start(spec: ModelSpec, config: VllmConfig, stats: Stats) -> LLMEngine:
    try:
        return LLMEngine.from_vllm_config(config, stat_loggers=[stats.logger])
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(_refusal(spec, error)) from error


def _load_adapter(llm: LLMEngine, lora: LoRARequest) -> None:
    """Load an adapter before anybody asks for it: vLLM's core dies of one that it cannot load for a request."""
    try:
        llm.add_lora(lora)
    except Exception as error:  # whatever kind vLLM's process raised, this one gets as another
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingsError(f"ADAPTER: {lora.lora_name} cannot be loaded by vLLM: {first[0]}") from error


def _refusal(spec: ModelSpec, error: Exception) -> str:
    said = str(error).strip().splitlines() or [type(error).__name__]
    reason = (
        next((line.strip() for line in said[1:] if line.strip()), said[0]) if "validation error" in said[0] else said[0]
    )
    return f"MODEL: {spec.source} cannot be loaded by vLLM: {reason}"


def _model(spec: ModelSpec, llm: LLMEngine, settings: Settings) -> VllmModel:
    config = llm.vllm_config
    model, cache = config.model_config, config.cache_config
    trust = {"trust_remote_code": settings.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, revision=model.tokenizer_revision, **trust)
    generation = try_get_generation_config(model.model, revision=model.revision, **trust) or GenerationConfig()
    limits = EngineLimits(
        sequences_max=config.scheduler_config.max_num_seqs,
        batch_tokens_max=config.scheduler_config.max_num_batched_tokens,
        context_length=model.max_model_len,
        vocabulary=model.get_vocab_size(),
        blocks=(cache.num_gpu_blocks or 0) * cache.block_size // BLOCK_SIZE,
        prefix_cache=bool(cache.enable_prefix_caching),
    )
    embedder = _embedder(spec, llm, tokenizer)
    eos_ids = frozenset[int]() if embedder else eos_ids_of(generation, tokenizer)
    return VllmModel(
        writes=embedder is None,
        limits=limits,
        defaults=defaults_of(generation),
        tokenizer=ChatTokenizer(tokenizer, eos_ids, vocabulary=limits.vocabulary),
        adapters=frozenset(name for name, _ in spec.adapters),
        embedder=embedder,
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _embedder(spec: ModelSpec, llm: LLMEngine, tokenizer: Any) -> Embedder | None:
    tasks = llm.get_supported_tasks()
    if "generate" in tasks:
        return None
    if "embed" in tasks:
        return VllmEmbedder(llm, tokenizer, "embed")
    if "classify" in tasks and getattr(llm.vllm_config.model_config.hf_config, "num_labels", 0) == 1:
        return VllmEmbedder(llm, tokenizer, "classify")
    raise SettingsError(f"MODEL: {spec.source} neither generates text, nor makes vectors or scores: {', '.join(tasks)}")


def _told(spec: ModelSpec, model: VllmModel, resume: Resume) -> dict[str, Any]:
    return {
        "source": spec.source,
        "engine": model.kind,
        "dtype": model.dtype,
        "cache_tokens": model.limits.blocks * BLOCK_SIZE,
        "resumes_as_preempted": resume.hooked,
    }
