"""A site where every kind of engine serves at once, with two servers behind the upstream workers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.chaos.engine_kinds import MOCK_STEP_S, EngineKind, kinds_of
from bench.chaos.http import ask
from bench.chaos.load import Asked
from bench.chaos.site import Site
from bench.chaos.story import CHAT, said_in
from bench.stack import answers
from shared.process.sockets import free_port
from workers.loading.model_spec import BUILTIN

ROOT = Path(__file__).parents[2]
READY_S = 300.0  # vLLM takes half a minute, and longer on a busy machine
SETTINGS = {
    "scripted_step_ms": 20,
    "scripted_tokens": 10**6,
    "step_timeout_s": 10,
    "drain_s": 1,
    "job_ttl_s": 3600,
}


class Server:
    """A mock server that may be killed and started again at the same port."""

    def __init__(self, log: Path) -> None:
        self._port = free_port()
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        command = [sys.executable, "-m", "bench.chaos.mock_server", str(self._port), str(MOCK_STEP_S)]
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def ready(self) -> bool:
        return answers(f"{self.url}/models")

    def kill(self) -> None:
        if self._popen:
            self._popen.kill()
            self._popen.wait()


class MixedSite(Site):
    """`python_of` names the interpreter of each engine that has packages of its own."""

    def __init__(self, folder: Path, code: Path, *, python_of: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self.servers = [Server(folder / "servers.log") for _ in range(2)]
        self.script: list[Asked] = []
        self._gguf = folder / "builtin.gguf"
        self._python_of = python_of
        urls = [server.url for server in self.servers]
        self.kinds: list[EngineKind] = kinds_of(python_of, urls=urls, builtin=BUILTIN, gguf=self._gguf)
        groups = [group for kind in self.kinds for group in kind.groups]
        super().__init__(folder, code, groups=groups, settings=SETTINGS, ready_s=READY_S)

    async def start(self, *, apis: int = 2) -> None:
        if python := self._python_of.get("llamacpp"):
            command = [python, "-m", "tools.gguf_model", str(BUILTIN), str(self._gguf), "--type", "f32"]
            await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=True)
        for server in self.servers:
            server.start()
        await self.until(lambda: all(server.ready() for server in self.servers), "the mock servers")
        await super().start(apis=apis)

    async def stop(self) -> None:
        await super().stop()
        for server in self.servers:
            server.kill()

    async def undisturbed(self) -> list[Asked]:
        """Ask everything of every kind once, without a fault; return the requests with their answers."""
        asked = [each for kind in self.kinds for each in kind.requests()]
        rights = await asyncio.gather(*[self.answer(each) for each in asked])
        self.script = [replace(each, right=right) for each, right in zip(asked, rights, strict=True)]
        return self.script

    async def answer(self, asked: Asked) -> str:
        """Ask, and return the answer. Raises ValueError for a refusal, and for choices that differ."""
        answer = await ask(self.bases()[0] + asked.path, body=body_of(asked))
        said: dict[str, Any] = json.loads(await answer.body())
        answer.close()
        if answer.status != 200:
            raise ValueError(f"{asked.model} refuses {asked.more} at {asked.path}: {said}")
        texts = {said_in(choice.get("message") or choice) for choice in said["choices"]}
        if len(texts) != 1:
            raise ValueError(f"{asked.model}: the choices of a greedy answer differ: {texts}")
        return texts.pop()


def body_of(asked: Asked) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked.content}]
    question = {"messages": messages} if asked.path == CHAT else {"prompt": asked.content}
    return {"model": asked.model, "max_tokens": asked.tokens, "temperature": 0, "n": asked.n, **question, **asked.more}
