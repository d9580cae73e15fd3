"""Many clients at once, each playing one story after another, and the right answers of their stories."""

import asyncio
import functools
import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Any

from bench.chaos.site import Site
from bench.chaos.story import CHAT, Story, Teller, Way
from workers.engines.scripted import ScriptedTokenizer, scripted_token
from workers.scheduling.sequence import SamplingParams, Sequence

WAYS = {Way.PLAIN: 5, Way.RESUME: 5, Way.RETRY: 3, Way.WHOLE: 3, Way.LEAVE: 1, Way.CANCEL: 1}
GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)


@functools.lru_cache(4096)
def right_answer(content: str, tokens: int) -> str:
    """Compute the scripted engine's answer independently of the engine."""
    tokenizer = ScriptedTokenizer()
    prompt = tokenizer.chat({"messages": [{"role": "user", "content": content}]}).ids
    sequence = Sequence(job_id="", choice=0, prompt=prompt, sampling=GREEDY)
    return tokenizer.decode([scripted_token(sequence, position) for position in range(tokens)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request and its right answer. `more` holds further fields of the body, and `excused` the error codes that the
    model's promise allows."""

    content: str
    tokens: int
    right: str
    more: dict[str, Any]
    model: str = ""
    path: str = CHAT
    n: int = 1
    excused: frozenset[str] = frozenset()

    @property
    def plain(self) -> bool:
        """True for a chat with one free answer."""
        return self.path == CHAT and self.n == 1 and not self.more.keys() & {"response_format", "tools"}


class Load:
    """A seeded load of `clients` stories at a time, each of `tokens` tokens or up to half more. `script` holds requests
    with their right answers to ask instead."""

    def __init__(
        self,
        site: Site,
        *,
        seed: int,
        clients: int,
        tokens: int,
        ways: dict[Way, int] | None = None,
        tenant: str = "load",
        script: Seq[Asked] = (),
    ) -> None:
        self._rng = random.Random(seed)
        self._tenant = tenant
        self._script = script
        self._seed = seed
        self._clients = clients
        self._tokens = tokens
        self._ways = ways or WAYS
        self._teller = Teller(site.model, site.bases, self._rng)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._count = 0
        self.stories: list[Story] = []

    def start(self) -> None:
        for _ in range(self._clients):
            self._spawn(self._client())

    def stop(self) -> None:
        """Start no more stories."""
        self._stopping = True

    async def ended(self) -> None:
        """Stop, and wait until every story has ended."""
        self.stop()
        while self._running:
            await asyncio.gather(*self._running)

    def add(self, story: Story) -> asyncio.Task[None]:
        """Start one more story beside the others."""
        self.stories.append(story)
        return self._spawn(self._one(story))

    def story(self, way: Way | None = None, *, model: str = "", **changes: object) -> Story:
        """Make a story that is not begun; with `model`, a plain chat of that model."""
        self._count += 1
        rng = self._rng
        chosen = way or rng.choices(list(self._ways), list(self._ways.values()))[0]
        tokens = rng.randint(self._tokens, self._tokens * 3 // 2)
        given = {
            "name": f"{self._seed}-{self._count}",
            "way": chosen,
            "content": f"question {self._seed} {self._count}",
            "tokens": tokens,
            "n": rng.choice([1, 1, 1, 2, 3]) if chosen is not Way.PLAIN else 1,
            "leave_after": rng.randint(1, tokens),
            "tenant": self._tenant,
        }
        if self._script:
            changes.pop("tokens", None)  # the right answer has exactly the scripted number of tokens
            given |= _asked(
                rng.choice([each for each in self._script if not model or (each.plain and each.model in ("", model))])
            )
        return Story(**{**given, **changes})  # type: ignore[arg-type]

    def open(self) -> list[Story]:
        """List the stories that have not ended."""
        return [story for story in self.stories if not story.ended]

    async def _client(self) -> None:
        await asyncio.sleep(self._rng.random())
        while not self._stopping:
            story = self.story()
            self.stories.append(story)
            await self._teller.tell(story)

    async def _one(self, story: Story) -> None:
        await self._teller.tell(story)

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task  # type: ignore[no-any-return]


def _asked(asked: Asked) -> dict[str, object]:
    return {each.name: getattr(asked, each.name) for each in fields(asked)}


def wrong_texts(story: Story) -> Iterator[str]:
    """List the texts that the client read and that are not a part of the right answer."""
    expected = right_answer(story.content, story.tokens) if story.right is None else story.right
    said = [{choice: story.text(choice) for choice in story.texts}, *story.partials]
    for texts in said:
        for choice, text in texts.items():
            if not expected.startswith(text):
                at = next(i for i, (a, b) in enumerate(zip(text, expected + "\0" * len(text), strict=False)) if a != b)
                yield f"{story.name} choice {choice} differs at {at}: {text[max(0, at - 20) : at + 20]!r}"
    if story.complete:
        for choice in range(story.n):
            if story.text(choice) != expected:
                yield f"{story.name} choice {choice} is complete with {len(story.text(choice))} of {len(expected)}"
            if story.finishes.get(choice) not in ("length", "stop", "tool_calls"):
                yield f"{story.name} choice {choice} has no finish reason"
