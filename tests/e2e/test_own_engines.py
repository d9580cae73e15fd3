"""Classes of one's own behind the API: those of docs/engines.md as they stand there, and what becomes of their answers
when a worker dies."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.e2e.harness import Process, Stack, eventually, standalone_stack, text_of

SLOW = """
import asyncio
from penstock.engines import Busy, ChatSource

class Slow(ChatSource):
    resume = "repeat"

    async def chat(self, request):
        for word in request.question.split():
            yield word + " "
            await asyncio.sleep(0.02)

class Forgetful(Slow):
    resume = "restart"

class Shy(ChatSource):
    asked = 0

    async def chat(self, request):
        self.asked += 1
        if self.asked == 1:
            raise Busy("not now", retry_after_s=0.2)
        yield f"asked {self.asked} times"
"""
QUESTION = " ".join(f"word{number}" for number in range(150))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the document, each under the name beside its language."""
    folder = tmp_path_factory.mktemp("engines")
    document = (ROOT / "docs" / "engines.md").read_text("utf-8")
    for name, code in re.findall(r"^```python (\w+\.py)\n(.*?)^```", document, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(code)
    (folder / "slow.py").write_text(SLOW)
    return folder


@pytest.fixture(scope="module")
def stack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        with standalone_stack(tmp_path_factory.mktemp("stack"), workers=0) as stack:
            yield stack


def serve(stack: Stack, folder: Path, model: str, engine: str, *options: str, drain_s: float = 5) -> Process:
    arguments = ["worker", model, f"--engine={engine}", *[f"--engine-option={each}" for each in options]]
    log = folder / f"{model}-{len(stack.workers)}.log"
    environment = {**stack.environment, "PENSTOCK_DRAIN_S": str(drain_s)}
    stack.workers.append(Process(arguments, environment=environment, log=log))
    stack.wait_ready(len([each for each in stack.workers if each.popen.poll() is None]))
    return stack.workers[-1]


def ask(stack: Stack, model: str, question: str, **more: Any) -> openai.types.chat.ChatCompletion:
    messages: Any = [{"role": "user", "content": question}]
    answer: openai.types.chat.ChatCompletion = stack.client().chat.completions.create(
        model=model, messages=messages, **more
    )
    return answer


def listed(stack: Stack, model: str) -> dict[str, Any]:
    return dict(httpx.get(f"{stack.base}/v1/models/{model}").json())


def test_the_echo_of_the_document_is_a_model_like_any_other(stack: Stack, folder: Path) -> None:
    serve(stack, folder, "echo", "bots:Echo", "greeting=You said: ")

    answer = ask(stack, "echo", "hello there", n=2)
    stopped = ask(stack, "echo", "one two three four", stop=["three"])
    short = ask(stack, "echo", "one two three four", max_tokens=2)

    assert [choice.message.content for choice in answer.choices] == ["You said: hello there "] * 2
    assert stopped.choices[0].message.content == "You said: one two "
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)  # type: ignore[union-attr]
    assert answer.usage.model_extra == {"estimated": True}  # type: ignore[union-attr]
    about = listed(stack, "echo")
    assert (about["engine"], about["resume"], about["capabilities"]) == ("custom", "exact", ["chat"])
    response = stack.client().responses.create(model="echo", input="hello")
    assert response.output_text == "You said: hello "


def test_what_the_echo_cannot_do_is_refused_by_name(stack: Stack) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as tools:
        ask(stack, "echo", "hello", tools=[tool])
    with pytest.raises(openai.BadRequestError) as logprobs:
        ask(stack, "echo", "hello", logprobs=True)
    tokenize = httpx.post(f"{stack.base}/v1/tokenize", json={"model": "echo", "prompt": "hello"})
    embedding = httpx.post(f"{stack.base}/v1/embeddings", json={"model": "echo", "input": "hello"})

    assert (tools.value.param, logprobs.value.param) == ("tools", "logprobs")
    assert (tokenize.status_code, "no tokenizer" in tokenize.text) == (400, True)
    assert (embedding.status_code, "/v1/chat/completions" in embedding.text) == (400, True)


def test_the_desk_of_the_document_answers_by_rules_and_calls_a_tool(stack: Stack, folder: Path) -> None:
    serve(stack, folder, "desk", "rules:Desk", "opens=8")
    tool: Any = {"type": "function", "function": {"name": "find_order", "parameters": {}}}

    hours = ask(stack, "desk", "When do you open?")
    called = ask(stack, "desk", "Where is order 17", tools=[tool])
    with pytest.raises(openai.BadRequestError) as refused:
        ask(stack, "desk", "Sing!")

    assert hours.choices[0].message.content == "We open at 8."
    (choice,) = called.model_dump()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["type"]) == ("tool_calls", "function")
    assert call["function"] == {"name": "find_order", "arguments": '{"order": "17"}'}
    assert refused.value.param == "messages"


def test_the_wrapped_library_of_the_document_counts_and_embeds(stack: Stack, folder: Path) -> None:
    serve(stack, folder, "shouting", "shouting:Shouting")

    answer = ask(stack, "shouting", "a sentence that is longer than one line")
    vectors = stack.client().embeddings.create(model="shouting", input=["aaa", "eee"]).data
    ranked = httpx.post(
        f"{stack.base}/v1/rerank", json={"model": "shouting", "query": "aaa", "documents": ["eee", "aa"]}
    ).json()

    assert answer.choices[0].message.content == "A SENTENCE THAT IS\nLONGER THAN ONE LINE"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 8)  # type: ignore[union-attr]
    assert not answer.usage.model_extra  # type: ignore[union-attr]
    assert [round(sum(x * x for x in each.embedding), 5) for each in vectors] == [1, 1]
    assert [each["index"] for each in ranked["results"]] == [1, 0]
    assert listed(stack, "shouting")["context_length"] == 4096


@pytest.mark.parametrize(
    ("engine", "option", "said"),
    [
        ("bots:Echo", "greting=hi", "has no option 'greting'; it has greeting"),
        ("rules:Desk", "opens=77", "opens: Input should be less than or equal to 23"),
        ("bots:Nobody", "a=1", "bots:Nobody cannot be imported: AttributeError"),
        ("nowhere:Bot", "a=1", "No module named 'nowhere'"),
        ("json:JSONDecoder", "a=1", "is no subclass of penstock.engines.ChatSource"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(stack: Stack, engine: str, option: str, said: str) -> None:
    arguments = ["worker", "m", f"--engine={engine}", f"--engine-option={option}"]
    ended = subprocess.run(
        [sys.executable, "-m", "cli", *arguments], env=stack.environment, capture_output=True, text=True, timeout=60
    )

    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_the_suite_of_the_document_passes_for_its_echo(stack: Stack, folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_echo.py"]
    ended = subprocess.run(command, cwd=folder, env=stack.environment, capture_output=True, text=True, timeout=110)

    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


def test_a_repeated_answer_survives_the_death_of_its_worker(stack: Stack, folder: Path) -> None:
    first = serve(stack, folder, "slow", "slow:Slow")
    stream = stack.client().chat.completions.create(
        model="slow", messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    begun = [next(stream) for _ in range(20)]

    first.kill()
    serve(stack, folder, "slow", "slow:Slow")

    assert text_of([*begun, *stream]) == QUESTION + " "


def test_a_worker_that_is_told_to_stop_hands_its_answer_over(stack: Stack, folder: Path) -> None:
    first = serve(stack, folder, "brief", "slow:Slow", drain_s=0.1)
    stream = stack.client().chat.completions.create(
        model="brief", messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    begun = [next(stream) for _ in range(20)]

    assert first.stop() == 0
    serve(stack, folder, "brief", "slow:Slow")

    assert text_of([*begun, *stream]) == QUESTION + " "


def test_an_answer_that_cannot_be_continued_ends_with_an_error_that_names_its_job(stack: Stack, folder: Path) -> None:
    first = serve(stack, folder, "forgetful", "slow:Forgetful")
    stream = stack.client().chat.completions.create(
        model="forgetful", messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    begun = [next(stream) for _ in range(20)]

    first.kill()
    serve(stack, folder, "forgetful", "slow:Forgetful")
    with pytest.raises(openai.APIError, match=begun[0].id) as lost:
        list(stream)

    assert lost.value.code == "upstream_lost"
    assert listed(stack, "forgetful")["resume"] == "restart"


def test_a_busy_source_has_its_job_again_later(stack: Stack, folder: Path) -> None:
    serve(stack, folder, "shy", "slow:Shy")

    answer = ask(stack, "shy", "hello")

    assert answer.choices[0].message.content == "asked 2 times"
    attempt: Any = stack.redis.hget(f"rq:job:{answer.id}", "attempt")
    assert int(attempt) == 1


def test_a_client_that_leaves_closes_its_source(stack: Stack, folder: Path) -> None:
    with stack.client().chat.completions.create(
        model="slow", messages=[{"role": "user", "content": QUESTION * 20}], stream=True
    ) as stream:
        next(iter(stream))
        assert stack.running() > 0

    eventually("the source is closed", lambda: stack.running() == 0)
