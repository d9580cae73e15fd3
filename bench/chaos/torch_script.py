"""Requests for the built-in model, and its answers when it computes them alone, in deterministic mode."""

import asyncio
import json

from bench.chaos.http import ask
from bench.chaos.load import Asked
from bench.chaos.site import Site, WorkerGroup

SETTINGS = {"deterministic": True, "drain_s": 1, "kv_cache_gib": 0.2}
WORKERS = WorkerGroup(model="penstock-tiny", count=2, places=8)
TOPICS = ["a cat", "a dog", "a lighthouse", "two friends", "the sea", "a bird", "the rain", "an old clock"]
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 40}}, "required": ["name"]}


async def undisturbed(site: Site) -> list[Asked]:
    """Ask for free text and for answers that must match a schema; return the requests with their answers."""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    asked = [(f"Tell me a long story about {topic}.", 150, dict[str, object]()) for topic in TOPICS]
    asked += [(f"Who lives with {topic}? Answer in JSON.", 80, {"response_format": form}) for topic in TOPICS[:3]]
    return list(await asyncio.gather(*[_ask(site, *each) for each in asked]))


async def _ask(site: Site, content: str, tokens: int, more: dict[str, object]) -> Asked:
    body = {"model": site.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    answer = await ask(f"{site.bases()[0]}/v1/chat/completions", body=body | {"max_tokens": tokens} | more)
    said = json.loads(await answer.body())
    answer.close()
    return Asked(content=content, tokens=tokens, right=said["choices"][0]["message"]["content"], more=dict(more))
