"""The kinds of engines that serve side by side, what is asked of each, and what each promises."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.chaos.load import Asked
from bench.chaos.site import WorkerGroup
from bench.chaos.story import CHAT, COMPLETIONS

PACKAGES = {"llamacpp": ("llama_cpp", "gguf"), "vllm": ("vllm",)}  # of the engines that need some of their own
TOPICS = ("a cat", "two friends", "the rain")
LOST = frozenset({"upstream_lost"})
PLACES = 6
MOCK_STEP_S = 0.02
LONG_TOKENS = 400  # of a model as small as the built-in one, about as long as the other answers
EXACT = {"dtype": "float32", "kv_cache_gib": 0.1, "context_length": 1024}  # vLLM's answers are ours in one format alone
FIELDS = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 300}}, "required": ["name"]}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": FIELDS}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 300}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


class Shape(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    CHOICES = "choices"
    SCHEMA = "schema"
    TOOL = "tool"
    PENALTIES = "penalties"
    LONG = "long"


EVERY = frozenset(Shape)
MORE: Mapping[Shape, dict[str, Any]] = {
    Shape.SCHEMA: {"response_format": FORM},
    Shape.TOOL: {"tools": [TOOL], "tool_choice": "required"},
    Shape.PENALTIES: {"presence_penalty": 0.6, "frequency_penalty": 0.3, "ignore_eos": True},
    Shape.LONG: {"ignore_eos": True},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """An engine behind the model of its name. `shapes` are asked of it. Answers of the shapes in `may_break` may end as
    `upstream_lost` once they have begun; all others must be whole, and equal to the undisturbed ones."""

    name: str
    groups: Sequence[WorkerGroup]
    shapes: Set[Shape]
    may_break: Set[Shape] = frozenset()

    def requests(self) -> list[Asked]:
        """List what is asked of it, without the right answers."""
        return [self._request(shape, topic) for shape in sorted(self.shapes) for topic in TOPICS]

    def _request(self, shape: Shape, topic: str) -> Asked:
        return Asked(
            content=f"Can you tell me a long story about {topic}?",
            tokens=LONG_TOKENS if shape is Shape.LONG else 150,
            right="",
            more=dict(MORE.get(shape, {})),
            model=self.name,
            path=COMPLETIONS if shape is Shape.COMPLETION else CHAT,
            n=2 if shape is Shape.CHOICES else 1,
            excused=LOST if shape in self.may_break else frozenset(),
        )


def pythons(given: Mapping[str, str]) -> dict[str, str]:
    """Find the interpreter of each engine that has packages of its own: the one given, or else this one if it has the
    packages. An engine without one is left out."""
    found = dict(given)
    for engine, packages in PACKAGES.items():
        if engine not in found and all(importlib.util.find_spec(name) for name in packages):
            found[engine] = sys.executable
    return found


def kinds_of(found: Mapping[str, str], *, urls: Sequence[str], builtin: Path, gguf: Path) -> list[EngineKind]:
    """List the kinds that take part. `urls` are those of the mock servers, `builtin` the folder of the built-in model
    and `gguf` a file of the same model."""
    text = EVERY - {Shape.PENALTIES, Shape.LONG}
    kinds = [
        _kind("scripted", frozenset({Shape.CHAT, Shape.COMPLETION, Shape.CHOICES}), count=2),
        _kind("native", EVERY, count=2, source="builtin", settings={"deterministic": True, **EXACT}),
        _upstream("tokens", urls, text - {Shape.TOOL}, {Shape.SCHEMA}, tokenizer=str(builtin)),
        _upstream("prefill", urls, text, {Shape.SCHEMA, Shape.TOOL}, count=2, provider="vllm"),
        _upstream("restart", urls, text, text, provider="openai", serves=["chat", "complete"]),
        _kind("command", text - {Shape.TOOL}, settings=_command(builtin), may_break={Shape.SCHEMA}),
        _kind("class", text - {Shape.SCHEMA}, "--engine=bench.chaos.chat_source:Repeating"),
    ]
    if python := found.get("llamacpp"):
        options = {"threads": 1, "flash_attention": "false", "cache_type": "f32"}
        arguments = [f"--engine-option={name}={value}" for name, value in options.items()]
        settings = {"context_length": EXACT["context_length"]}
        kinds.append(_kind("llamacpp", EVERY, *arguments, source=str(gguf), python=python, settings=settings))
    if python := found.get("vllm"):
        arguments = ["--engine=vllm", "--engine-option=enforce_eager=true"]
        theirs = _kind("vllm", EVERY, *arguments, source="builtin", python=python, settings=EXACT)
        ours = _group("vllm", source="builtin", settings=EXACT)
        kinds.append(EngineKind(name="vllm", groups=[*theirs.groups, ours], shapes=EVERY))
    return kinds


def _upstream(name: str, urls: Sequence[str], shapes: Set[Shape], may_break: Set[Shape], **given: Any) -> EngineKind:
    count = given.pop("count", 1)
    settings = {"engine": "upstream", "engine_options": json.dumps({"urls": list(urls), **given})}
    return _kind(name, shapes, may_break=may_break, count=count, settings=settings)


def _command(builtin: Path) -> dict[str, object]:
    run = f"{sys.executable} -m bench.chaos.mock_server ${{PORT}} {MOCK_STEP_S}"
    return {
        "engine": "command",
        "engine_options": json.dumps(
            {"run": run, "ready": "/v1/models", "provider": "vllm", "tokenizer": str(builtin)}
        ),
    }


def _kind(
    name: str, shapes: Set[Shape], *arguments: str, may_break: Set[Shape] = frozenset(), **given: Any
) -> EngineKind:
    return EngineKind(name=name, groups=[_group(name, *arguments, **given)], shapes=shapes, may_break=may_break)


def _group(model: str, *arguments: str, count: int = 1, **given: Any) -> WorkerGroup:
    return WorkerGroup(model=model, count=count, places=PLACES, arguments=arguments, **given)
