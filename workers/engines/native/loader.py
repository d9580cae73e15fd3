"""The loader makes an engine of a folder or a hub id: transformers loads the model, accelerate places it.

| the model                                             | is loaded as | and served by                               |
|-------------------------------------------------------|--------------|---------------------------------------------|
| has a classification head of one label                | RANKS        | an encoder engine with a cross-encoder      |
| says how to pool, or is no causal language model      | EMBEDS       | an encoder engine with an embedder          |
| is any other                                          | WRITES       | what `engine_selection` selects             |
"""

import enum
import logging
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.generation_config import defaults_of, eos_ids_of
from workers.engines.native.agreement import TextEngine
from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.device_limits import step_sizes
from workers.engines.native.embedding.encoder import encoder_engine, ranking_engine
from workers.engines.native.embedding.pooling import is_embedding_folder, load_pooling
from workers.engines.native.engine_selection import engine_for
from workers.engines.native.hub_files import located
from workers.engines.native.weights.parallel import require_one, tell
from workers.engines.native.weights.placement import placement
from workers.loading.loaded import Loaded, infos_of, stepped
from workers.loading.model_spec import ModelSpec
from workers.loading.options import EngineOptions, validated
from workers.process import load_progress
from workers.process.host_memory import keep_freed_memory
from workers.process.load_progress import WARM_UP, WEIGHTS, told_while
from workers.process.ranks import world
from workers.process.single_thread import SingleThread
from workers.protocols import Engine
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.text.chat_tokenizer import ChatTokenizer

log = logging.getLogger(__name__)
CONTEXT_UNKNOWN = 4096
BAR = "Loading weights"


class Use(enum.Enum):
    """The use of a model; the value is the class of transformers that loads it."""

    RANKS = AutoModelForSequenceClassification
    EMBEDS = AutoModel
    WRITES = AutoModelForCausalLM


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Load a model that `thread` computes from now on. Raises SettingsError if it cannot be loaded."""
    engine = load_engine(spec, settings)
    return stepped(infos_of(spec, engine), engine, thread, close=_dismiss_ranks)


def load_engine(spec: ModelSpec, settings: Settings) -> Engine:
    """Load the engine in this thread, which alone may compute it. Raises SettingsError for any option, too."""
    validated(spec.engine, spec.options, EngineOptions)
    return load_torch_engine(spec.source, settings, adapters=spec.adapters)


def _dismiss_ranks() -> None:
    if world() > 1:
        tell(None)


def load_torch_engine(source: str, settings: Settings, *, adapters: Seq[tuple[str, str]] = ()) -> Engine:
    """`adapters`: name and source of each. Raises SettingsError, in one sentence, for a model that cannot be loaded."""
    began = time.monotonic()
    keep_freed_memory()
    source, where = located(source, settings)
    model, tokenizer, use = _load(source, settings, where)
    reads_only = use is not Use.WRITES
    require_one("ADAPTER: adapters", adapters)
    require_one("MODEL: a model for embeddings", reads_only)
    if reads_only and adapters:
        raise SettingsError(f"ADAPTER: {source} generates no text, and adapters are for models that do")
    match use:
        case Use.RANKS:
            engine: Engine = ranking_engine(model, tokenizer, settings)
        case Use.EMBEDS:
            engine = encoder_engine(model, tokenizer, load_pooling(source, model.device, **where), settings)
        case Use.WRITES:
            engine = _text_engine(model, tokenizer, settings, adapters)
    engine.dtype = str(model.dtype).removeprefix("torch.")
    log.info(
        "model loaded",
        extra={
            "source": source,
            "engine": engine.kind,
            "kernel": engine.kernel.name if isinstance(engine, BatchedEngine) else None,
            "device": str(model.device),
            "dtype": engine.dtype,
            "parameters_m": round(model.num_parameters() / 1e6, 1),
            "cache_tokens": engine.limits.blocks * BLOCK_SIZE,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    return engine


def _text_engine(model: Any, tokenizer: Any, settings: Settings, adapters: Seq[tuple[str, str]]) -> TextEngine:
    eos_ids = eos_ids_of(model.generation_config, tokenizer)
    limits = _limits(model, settings)
    if not tokenizer.chat_template:
        log.warning("the model has no chat template; prompts are plain 'role: content' lines")
    chat = ChatTokenizer(tokenizer, eos_ids, vocabulary=limits.vocabulary)
    engine = engine_for(model, chat, limits, defaults_of(model.generation_config), settings)
    for name, adapter in adapters:
        folder, at = located(adapter, settings, revision="")
        engine.adapters.load(name, folder, model, **at)
    return engine


def _load(source: str, settings: Settings, where: dict[str, Any]) -> tuple[Any, Any, Use]:
    """The model, its tokenizer, and its use."""
    placed = placement(settings)
    trust = {"trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **where, **trust)
        tokenizer = AutoTokenizer.from_pretrained(source, **where, **trust)
        use = _use(config, source, where)
        with _progress_told():
            model = use.value.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                **placed,
                **where,
                **trust,
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(f"MODEL: {source} cannot be loaded: {first}") from error
    return model.eval(), tokenizer, use


@contextmanager
def _progress_told() -> Iterator[None]:
    """Tell how many of the weights are loaded, which transformers shows as a bar. Releases without this hook tell
    nothing."""

    def bar(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") == BAR and arguments and hasattr(arguments[0], "__len__"):
            return told_while(WEIGHTS, arguments[0], len(arguments[0]))
        return factory(*arguments, **options)

    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return
    before = set_hook(bar)
    try:
        yield
    finally:
        set_hook(before)
        load_progress.tell(WARM_UP)


def _use(config: Any, source: str, where: dict[str, Any]) -> Use:
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if classifies and config.num_labels == 1:
        return Use.RANKS
    embeds = is_embedding_folder(source, **where) or not _writes(config)
    return Use.EMBEDS if embeds else Use.WRITES


def _writes(config: Any) -> bool:
    """True for a causal language model."""
    made_as = config.architectures or []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    return remote or not made_as or any(name in known for name in made_as)


def _limits(model: Any, settings: Settings) -> EngineLimits:
    config = model.config.get_text_config()
    own = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or CONTEXT_UNKNOWN
    context = settings.context_length or own
    if context > own:
        raise SettingsError(f"PENSTOCK_CONTEXT_LENGTH: {context} is more than the model's {own}")
    sequences_max, batch_tokens_max = step_sizes(settings, model.device)
    return EngineLimits(
        sequences_max=sequences_max,
        batch_tokens_max=batch_tokens_max,
        context_length=context,
        vocabulary=config.vocab_size,
        prefix_cache=settings.prefix_cache,
    )
