"""A worker that serves a GGUF file streams, keeps to a schema, and another one continues its answers when it dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import own_redis  # noqa: F401
from tests.e2e.harness import Stack, eventually, running_stack
from tests.e2e.test_faults import DEFAULT_LEASE, ask, expect_whole, read_all
from workers.loading.model_spec import BUILTIN

pytest.importorskip("llama_cpp", reason="penstock[gguf] is not installed")
pytest.importorskip("gguf", reason="penstock[gguf] is not installed")

from tools.gguf_model import convert

MODEL = "tiny"
PROMPTS = [f"Tell me a story about a {animal}." for animal in ("cat", "dog", "fox", "bird")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(BUILTIN, file, "q8_0")
    return f"{MODEL}={file}"


@pytest.fixture
def stack(tmp_path: Path, source: str, own_redis: Any) -> Iterator[Stack]:  # noqa: F811
    given: dict[str, Any] = {"engine_options": json.dumps({"threads": 1}), "context_length": 1024}
    with running_stack(tmp_path, own_redis, source, **given, **DEFAULT_LEASE) as running:
        yield running


def test_a_gguf_file_answers_chats_lists_itself_and_keeps_to_a_schema(stack: Stack) -> None:
    client = stack.client()
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "age", "schema": schema}}

    answer = client.chat.completions.create(model=MODEL, messages=ask("What is the capital of France?"), logprobs=True)
    formed = client.chat.completions.create(
        model=MODEL, messages=ask("How old is she?"), response_format=form, temperature=0
    )

    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].logprobs
    assert isinstance(json.loads(formed.choices[0].message.content or "")["age"], int)
    listed: Any = client.models.retrieve(MODEL)
    assert (listed.engine, listed.context_length) == ("llamacpp", 1024)


def test_answers_of_a_killed_worker_are_continued_by_another(stack: Stack, source: str) -> None:
    undisturbed = read_all(stack, MODEL, PROMPTS)
    for reader in undisturbed:
        reader.join(timeout=60)
    stack.add_worker(source)
    stack.wait_ready(2)

    readers = read_all(stack, MODEL, PROMPTS)
    for reader in readers:
        reader.started.wait(30)
    victim = eventually("one is busy", lambda: next((w for w in stack.workers if stack.worker_running(w)), None))
    os.kill(victim.popen.pid, signal.SIGKILL)

    expect_whole(readers, [reader.text for reader in undisturbed])
