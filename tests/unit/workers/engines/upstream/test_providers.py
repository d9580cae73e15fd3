"""Each row of the table of upstreams: as its document says it, and against a stand-in that behaves as the row says."""

from collections.abc import Iterator
from typing import Any

import pytest

from shared.domain.events import FinishReason, Usage
from shared.domain.job import Sampling
from tests.conftest import ROOT
from tests.unit.workers.engines.upstream.conftest import SourceOf, asked, said_by, text_of
from tests.upstreams import USAGE, StandIn, anthropic, chunk, serving, words_of
from workers.engines.upstream.providers import PROVIDERS, Provider
from workers.source import Resume, Said

PAGE = (ROOT / "docs" / "upstreams.md").read_text(encoding="utf-8")
WORDS = ("one", " two", " three")


def row(provider: Provider) -> str:
    """The provider's line in docs/upstreams.md."""
    url = f"`{provider.url}`" if provider.url else "its own"
    lacks = ", ".join(f"`{name}`" for name in sorted(provider.lacks)) or "-"
    known = "read" if provider.confirmed else "not confirmed"
    return f"| `{provider.name}` | {url} | `{provider.resume}` | {lacks} | {known} | {provider.note} |"


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_document_says_what_the_table_says(name: str) -> None:
    assert row(PROVIDERS[name]) in PAGE.splitlines()


def strict(provider: Provider) -> StandIn:
    """A server that refuses what the provider lacks, and continues only what is marked as the provider wants it."""
    ours = {"n", "tools", "model", "messages", "stream", "stream_options", "temperature", "stop"}
    named = {own for _, own in provider.names}

    def check(body: dict[str, Any]) -> None:
        last = body["messages"][-1]
        assert not body.keys() & (provider.lacks - named - ours), body
        assert body["stream"] is True
        assert ("stream_options" in body) == provider.asks_usage
        if last["role"] == "assistant":
            assert all(last[mark] is True for mark in provider.marks)
            assert all(body[field] is True for field in provider.continues)

    def echo(body: dict[str, Any]) -> str:
        last = body["messages"][-1]
        return last["content"] if provider.echoes and last["role"] == "assistant" else ""

    def events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        check(body)
        yield chunk({"role": "assistant", "content": ""})
        repeated = echo(body)
        for word in words_of(body, WORDS):
            yield chunk({"content": repeated + word})
            repeated = ""
        yield chunk({}, "stop", usage=USAGE)

    return StandIn({"/chat/completions": events})


@pytest.mark.parametrize("name", [name for name, each in PROVIDERS.items() if each.speaks == "openai"])
async def test_a_provider_answers_and_continues_as_its_row_says(name: str, source_of: SourceOf) -> None:
    provider = PROVIDERS[name]
    sampling = Sampling(seed=1, seeded=False, temperature=0.5, max_tokens=40, stop=("END",))
    async with serving(strict(provider)) as server:
        source = source_of(server, resume=provider.resume, provider=name)
        whole = await said_by(source, asked(sampling=sampling))
        rest = await said_by(source, asked(said=Said(text="one two"))) if provider.resume is Resume.PREFILL else []

    assert text_of(whole) == "".join(WORDS)
    assert whole[-2:] == [FinishReason.STOP, Usage(prompt_tokens=7, completion_tokens=5)]
    assert text_of(rest) == (" three" if rest else "")
    assert dict(provider.names).get("max_tokens", "max_tokens") in server.bodies[0]


async def test_anthropic_answers_and_continues_where_that_is_asked_for(
    source_of: SourceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    async with serving(anthropic(WORDS)) as server:
        source = source_of(server, resume=Resume.PREFILL, provider="anthropic", key="${env:A_KEY}")

        whole = await said_by(source, asked())
        rest = await said_by(source, asked(said=Said(text="one two")))

    assert text_of(whole) == "one two three"
    assert whole[-2:] == [FinishReason.STOP, Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3)]
    assert text_of(rest) == " three"
    assert server.received[0].headers["x-api-key"] == "sk-secret"
