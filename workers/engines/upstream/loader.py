"""Loads a model that other servers compute: as a source of text, or of tokens if its tokenizer is here."""

from dataclasses import replace

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.upstream.options import UpstreamOptions
from workers.engines.upstream.source import UpstreamSource
from workers.engines.upstream.upstreams import Upstreams
from workers.loading.loaded import Loaded
from workers.loading.model_spec import ModelSpec
from workers.loading.options import validated
from workers.loading.sourced import sourced
from workers.process.single_thread import SingleThread

KIND = "upstream"


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Open the upstreams. One that does not answer yet is no error. Raises SettingsError for options that are wrong."""
    options = validated(KIND, spec.options, UpstreamOptions)
    upstreams = Upstreams(options, model=spec.source, redis_url=settings.redis_url)
    return load_upstreams(spec, settings, thread, upstreams, options)


def load_upstreams(
    spec: ModelSpec, settings: Settings, thread: SingleThread, upstreams: Upstreams, options: UpstreamOptions
) -> Loaded:
    """Open these upstreams as the model's. Raises SettingsError."""
    if spec.adapters:
        raise SettingsError("ADAPTER: an upstream has no weights here that could be adapted")
    if options.tokenizer:
        from workers.engines.upstream.token_loader import load_tokens  # needs transformers, which is optional

        return load_tokens(spec, settings, thread, upstreams, options)
    loaded = sourced(spec, _TextSource(upstreams), thread, kind=KIND, sequences_max=settings.sequences_max)
    return replace(loaded, quotas=tuple(upstream.quota for upstream in upstreams.all))


class _TextSource(UpstreamSource):
    """A source that knows what it can do once its upstreams are open."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._opened = upstreams

    async def open(self) -> None:
        await self._opened.open()
        opened = self._opened
        super().__init__(opened.all, resume=opened.resume, serves=opened.serves, abilities=opened.abilities)
        self.context_length = opened.context_length

    async def watch(self) -> None:
        await self._opened.watch()

    async def close(self) -> None:
        await self._opened.close()
