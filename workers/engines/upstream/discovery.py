"""Finds the models of upstreams, for a command line that names none."""

import asyncio
from collections.abc import Mapping
from typing import Any

from shared.domain.errors import SettingsError
from shared.domain.job import MODEL_NAME
from workers.engines.upstream.errors import UpstreamError
from workers.engines.upstream.options import UpstreamOptions
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.loading.options import validated

MODELS_MAX = 16
SILENCE_S = 10.0


def options_of(options: Mapping[str, Any]) -> UpstreamOptions:
    """The engine's options. Raises SettingsError for wrong ones, and for a key whose variable is not set."""
    checked = validated("upstream", options, UpstreamOptions)
    for target in checked.targets:
        target.secret()
    return checked


def listed_models(options: UpstreamOptions) -> list[str]:
    """The models of the first upstream: its names, or NAME=SOURCE where a model cannot have that name here. Raises
    SettingsError."""
    return asyncio.run(_listed(options))


async def _listed(options: UpstreamOptions) -> list[str]:
    target = options.targets[0]
    if target.model:
        return [_named(target.model)]
    transport = Transport(silence_s=SILENCE_S)
    try:
        found = [each["id"] for each in await Upstream(target, transport, model="").models()]
    except UpstreamError as error:
        message = f"UPSTREAM: {target.url} {error}. Start it first, or name its model by --model"
        raise SettingsError(message) from error
    finally:
        await transport.close()
    if not 0 < len(found) <= MODELS_MAX:
        raise SettingsError(f"UPSTREAM: {target.url} lists {len(found)} models; name those to serve by --model")
    return [_named(each) for each in found]


def _named(source: str) -> str:
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._/-") else "-" for letter in source)
    name = name.lstrip("._/-")[:128]
    return source if MODEL_NAME.fullmatch(source) else f"{name}={source}"
