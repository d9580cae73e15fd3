"""The protocols in which upstreams are asked for answers, by the name in the table of providers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from workers.engines.upstream.chat_body import chat_body, completion_body
from workers.engines.upstream.chat_stream import ChunkReader, Reader, WithoutEcho
from workers.engines.upstream.messages_body import messages_body
from workers.engines.upstream.messages_stream import MessagesReader
from workers.engines.upstream.providers import Provider
from workers.source import ChatRequest, CompletionRequest, Said

Asked = ChatRequest | CompletionRequest


class ChatProtocol(NamedTuple):
    """`request` makes path and body of a streamed answer that continues what was said; it raises InvalidRequest."""

    request: Callable[[Asked, Provider, str, Said], tuple[str, dict[str, Any]]]
    reader: Callable[[Asked, Provider, Said], Reader]


def _openai(request: Asked, provider: Provider, model: str, said: Said) -> tuple[str, dict[str, Any]]:
    if isinstance(request, ChatRequest):
        return "/chat/completions", chat_body(request, provider, model, said)
    return "/completions", completion_body(request, provider, model, said)


def _anthropic(request: Asked, provider: Provider, model: str, said: Said) -> tuple[str, dict[str, Any]]:
    assert isinstance(request, ChatRequest), "the source serves no completions"
    return "/messages", messages_body(request, provider, model, said)


def _chunks(request: Asked, provider: Provider, said: Said) -> Reader:
    echoes = provider.echoes and isinstance(request, ChatRequest)
    return WithoutEcho(ChunkReader(), said.text) if echoes else ChunkReader()


PROTOCOLS = {
    "openai": ChatProtocol(_openai, _chunks),
    "anthropic": ChatProtocol(_anthropic, lambda request, provider, said: MessagesReader(said)),
}
