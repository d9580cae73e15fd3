"""One client and its request, from the first try to the end, with everything that the client saw."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.chaos.http import Answer, Broken, ask

PATIENCE_S = 90.0
RETRY_S = 0.2
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ANSWER_S = 40.0  # for the head of an answer: a frozen API stays silent, and the client goes elsewhere


class Way(StrEnum):
    PLAIN = "plain"  # an openai client without retries in a stream
    RESUME = "resume"  # resumes its stream after the number of the last event
    RETRY = "retry"  # sends the same request again with its Idempotency-Key
    WHOLE = "whole"  # no stream; retried with its key
    LEAVE = "leave"  # leaves after some tokens
    CANCEL = "cancel"  # cancels its job after some tokens


@dataclass(slots=True, kw_only=True)
class Story:
    """One request and what its client saw. `texts` holds (time, text) by choice, since the stream last began anew;
    `partials` holds the texts before that. `ends` lists the terminal events. `problem` is the code of the error that
    ended it. `clean_nothing` counts bodies that ended cleanly without an answer."""

    name: str
    way: Way
    content: str
    tokens: int
    model: str = ""  # if it is not the one that all are asked of
    path: str = CHAT
    n: int = 1
    tenant: str = "load"
    leave_after: int = 0
    cut_after: int = 0  # the client cuts its connection once, after so many frames with text
    headers: dict[str, str] = field(default_factory=dict)
    silence_s: float = PATIENCE_S  # silence after which the client goes elsewhere
    more: dict[str, Any] = field(default_factory=dict)
    right: str | None = None  # the right answer, if it is not the scripted engine's
    expects: frozenset[str] = frozenset()  # error codes that are right answers
    excused: frozenset[str] = frozenset()  # error codes that the model's promise allows
    began: float = 0.0
    accepted: float = 0.0
    ended: float = 0.0
    base: str = ""  # the API it asked last; the next try goes elsewhere
    job_id: str = ""
    job_ids: list[str] = field(default_factory=list)
    last_id: str = ""
    texts: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    partials: list[dict[int, str]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    problem: str = ""
    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    clean_nothing: int = 0
    frames_after_end: int = 0
    wrongs: list[str] = field(default_factory=list)  # anything else that the client must not see
    heard: asyncio.Event = field(default_factory=asyncio.Event)  # set at the first text, or at the end without any

    @property
    def complete(self) -> bool:
        return self.ends == ["done"]

    def text(self, choice: int) -> str:
        return "".join(text for _, text in self.texts.get(choice, []))

    @property
    def waited(self) -> float | None:
        """The seconds from the first try to the first text."""
        times = self.times()
        return times[0] - self.began if times else None

    def times(self) -> list[float]:
        return sorted(when for pieces in self.texts.values() for when, _ in pieces)


def said_in(message: dict[str, Any]) -> str:
    """Return the text of a message, a delta or a completion's choice, followed by the names and arguments of its tool
    calls."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    called = [(function.get("name") or "") + (function.get("arguments") or "") for function in functions]
    return "".join([message.get("content") or message.get("text") or "", *called])


class Teller:
    """Plays stories against any API that answers."""

    def __init__(self, model: str, bases: Any, rng: Any) -> None:
        self._model = model
        self._bases = bases
        self._rng = rng

    async def tell(self, story: Story) -> Story:
        story.began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    if await self._try(story):
                        break
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            story.problem = story.problem or "silence"
        story.ended = time.monotonic()
        story.heard.set()
        return story

    async def _try(self, story: Story) -> bool:
        """Try once. Return True if the story has ended."""
        answer: Answer | None = None
        try:
            answer = await self._answer(story)
            return await self._listen(story, answer)
        except Broken:
            if story.ends:
                return True  # after an error frame the body must not end cleanly
            story.broken += 1
            if story.way is Way.PLAIN and story.job_id:
                story.problem = "broken"
                return True
            return False
        finally:
            if answer:
                answer.close()

    async def _answer(self, story: Story) -> Answer:
        try:
            async with asyncio.timeout(min(ANSWER_S, story.silence_s)):
                return await self._ask(story)
        except TimeoutError as error:
            raise Broken("no answer") from error

    async def _ask(self, story: Story) -> Answer:
        bases = self._bases()
        if not bases:
            raise Broken("no API runs")
        base = self._rng.choice([base for base in bases if base != story.base] or bases)
        story.base = base
        headers = {"authorization": f"Bearer {story.tenant}", **story.headers}
        if story.way is Way.RESUME and story.job_id:
            if story.last_id:
                headers["last-event-id"] = story.last_id
            return await ask(f"{base}/v1/jobs/{story.job_id}/events", method="GET", headers=headers)
        if story.way is Way.RESUME:
            headers = {"x-penstock-event-ids": "true", "x-penstock-grace-s": "60"} | headers
        if story.way in (Way.RETRY, Way.WHOLE, Way.RESUME):
            headers["idempotency-key"] = story.name
        if story.texts:
            story.partials.append({choice: story.text(choice) for choice in story.texts})
        story.texts, story.finishes = {}, {}
        return await ask(base + story.path, body=self._body(story), headers=headers)

    def _body(self, story: Story) -> dict[str, Any]:
        messages = [{"role": "user", "content": story.content}]
        question = {"messages": messages} if story.path == CHAT else {"prompt": story.content}
        body = {"model": story.model or self._model, "max_tokens": story.tokens, "temperature": 0}
        return body | question | story.more | {"stream": story.way is not Way.WHOLE, "n": story.n}

    async def _listen(self, story: Story, answer: Answer) -> bool:
        story.statuses.append(answer.status)
        if job_id := answer.headers.get("x-penstock-job-id"):
            story.job_id = job_id
            if job_id not in story.job_ids:
                story.job_ids.append(job_id)
                story.accepted = time.monotonic()
        if answer.status != 200:
            body = await answer.body()
            try:
                story.problem = str(json.loads(body)["error"]["code"])
            except ValueError:
                story.wrongs.append(f"status {answer.status} with {body[:80]!r} from {story.base}")
                return False
            if answer.status in (429, 503) or (answer.status == 404 and story.way is Way.RESUME):
                await asyncio.sleep(min(float(answer.headers.get("retry-after", RETRY_S)), 1.0))
                return False
            story.ends.append(f"error:{story.problem}")
            return True
        story.problem = ""
        if story.way is Way.WHOLE:
            self._whole(story, json.loads(await answer.body()))
            return True
        return await self._stream(story, answer)

    @staticmethod
    def _whole(story: Story, body: dict[str, Any]) -> None:
        now = time.monotonic()
        for choice in body["choices"]:
            story.texts[choice["index"]] = [(now, said_in(choice.get("message") or choice))]
            story.finishes[choice["index"]] = choice["finish_reason"]
        story.ends.append("done")

    async def _stream(self, story: Story, answer: Answer) -> bool:
        rest = b""
        async for piece in answer.pieces(story.silence_s):
            *frames, rest = (rest + piece).split(b"\n\n")  # an event is complete at its blank line
            for frame in frames:
                for line in frame.split(b"\n"):
                    self._line(story, line)
                if story.cut_after and len(story.times()) == story.cut_after:
                    story.cut_after = 0
                    raise Broken("cut by itself")
            if story.way in (Way.LEAVE, Way.CANCEL) and len(story.times()) >= story.leave_after:
                return await self._go(story, answer)
        if not story.ends:
            story.clean_nothing += 1
        return True

    def _line(self, story: Story, line: bytes) -> None:
        if line.startswith(b"id: "):
            story.last_id = line[4:].decode()
        if not line.startswith(b"data: "):
            return
        if story.ends:
            story.frames_after_end += 1
        if line == b"data: [DONE]":
            story.ends.append("done")
            return
        chunk = json.loads(line[6:])
        if error := chunk.get("error"):
            story.problem = str(error["code"])
            story.ends.append(f"error:{story.problem}")
        for choice in chunk.get("choices", ()):
            index = choice["index"]
            if text := said_in(choice.get("delta") or choice):
                story.texts.setdefault(index, []).append((time.monotonic(), text))
                story.heard.set()
            if choice["finish_reason"]:
                story.finishes[index] = choice["finish_reason"]

    async def _go(self, story: Story, answer: Answer) -> bool:
        """Leave or cancel. A client that leaves just goes; one that cancels reads on to the end of its stream."""
        if story.way is Way.LEAVE or story.ends:
            return True
        story.leave_after = 10**9
        base = self._rng.choice(self._bases())
        headers = {"authorization": f"Bearer {story.tenant}"}
        try:
            said = await ask(f"{base}/v1/jobs/{story.job_id}/cancel", headers=headers)
            told = json.loads(await said.body())
            said.close()
        except Broken:
            return True
        if said.status == 200 and told["status"] not in ("canceled", "finished", "failed"):
            story.wrongs.append(f"cancelled, and the job is {told['status']}")
        return await self._stream(story, answer)
