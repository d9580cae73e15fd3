"""The model behind a token upstream: its tokenizer is here, its weights are not."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from shared.domain.errors import SettingsError
from shared.domain.job import Kind
from shared.queue.protocols import Delivery
from shared.settings import Settings
from workers.engines.generation_config import defaults_of, eos_ids_of
from workers.engines.upstream.options import UpstreamOptions
from workers.engines.upstream.token_protocols import TOKEN_PROTOCOLS
from workers.engines.upstream.token_run import TokenRun
from workers.engines.upstream.token_source import TokenSource
from workers.engines.upstream.upstreams import Upstreams
from workers.loading.loaded import Loaded, infos_of
from workers.loading.model_spec import ModelSpec
from workers.loading.sourced import sourced
from workers.process.single_thread import SingleThread
from workers.protocols import Defaults, Embedder
from workers.runs.begin import begin
from workers.runs.run import JobRun
from workers.scheduling.engine_limits import EngineLimits
from workers.text.chat_tokenizer import ChatTokenizer

CONTEXT_UNKNOWN = 4096


@dataclass(kw_only=True)
class TokenModel:
    """A model as runs see it."""

    limits: EngineLimits
    defaults: Defaults
    tokenizer: ChatTokenizer
    kind: str = "upstream"
    writes: bool = True
    adapters: Container[str] = frozenset()
    embedder: Embedder | None = None
    dtype: str = ""


def load_tokens(
    spec: ModelSpec, settings: Settings, thread: SingleThread, upstreams: Upstreams, options: UpstreamOptions
) -> Loaded:
    """Raises SettingsError for a tokenizer that cannot be loaded."""
    model, end = _model(options.tokenizer, settings, options)
    source = _OpenedTokens(upstreams, options.tokens, end)
    loaded = sourced(spec, source, thread, kind=model.kind, sequences_max=settings.sequences_max)
    if theirs := upstreams.context_length:
        model.limits = replace(model.limits, context_length=min(model.limits.context_length, theirs))

    def begun(delivery: Delivery) -> JobRun:
        if delivery.job.kind in (Kind.CHAT, Kind.COMPLETION):
            return TokenRun(delivery, model, source.tokens, protocol=source.protocol, cost=source.cost)
        return begin(model, delivery)

    quotas = tuple(upstream.quota for upstream in upstreams.all)
    return replace(loaded, infos=infos_of(spec, model), begin=begun, quotas=quotas)


class _OpenedTokens(TokenSource):
    def __init__(self, upstreams: Upstreams, protocol: str, end: int) -> None:
        super().__init__((), TOKEN_PROTOCOLS[protocol], end=end)
        self._opened = upstreams

    async def open(self) -> None:
        await self._opened.open()
        try:
            await self._opened.check(self.protocol)
        except SettingsError:
            await self._opened.close()
            raise
        self._upstreams = self._opened.all

    async def watch(self) -> None:
        await self._opened.watch()

    async def close(self) -> None:
        await self._opened.close()


def _model(source: str, settings: Settings, options: UpstreamOptions) -> tuple[TokenModel, int]:
    """The model, and the token that ends its answers."""
    folder = Path(source).expanduser()
    source = str(folder) if folder.is_dir() else source
    load: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision and not folder.is_dir():
        load["revision"] = settings.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **load)
        config = AutoConfig.from_pretrained(source, **load).get_text_config()
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"ENGINE_OPTION tokenizer: {source} cannot be loaded: {first}") from error
    generation = _generation_config(source, load)
    eos_ids = eos_ids_of(generation, tokenizer)
    own = getattr(config, "max_position_embeddings", None) or CONTEXT_UNKNOWN
    limits = EngineLimits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=options.context_length or settings.context_length or own,
        vocabulary=config.vocab_size,
    )
    chat = ChatTokenizer(tokenizer, eos_ids, vocabulary=limits.vocabulary)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(eos_ids, default=0)
    return TokenModel(limits=limits, defaults=defaults_of(generation), tokenizer=chat), end


def _generation_config(source: str, load: dict[str, Any]) -> Any:
    try:
        return GenerationConfig.from_pretrained(source, **load)
    except OSError:  # the model has none
        return GenerationConfig()
