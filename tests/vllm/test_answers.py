"""vLLM answers as our own engine does: the same model, in the same number format, at temperature 0."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.e2e.harness import Process, eventually, metric
from tests.e2e.test_adapters import make_adapter
from tests.vllm.conftest import MODEL, Engines, descendants

MESSAGES: Any = [{"role": "user", "content": "Count from one to twenty, please."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Berlin", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "a stop string": {"stop": ["e h", "ou"]},
    "logprobs": {"logprobs": True, "top_logprobs": 3, "max_tokens": 12},
    "a schema": {"response_format": FORM},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    "repetition": {"extra_body": {"repetition_penalty": 1.3}},
    "a bias": {"logit_bias": {"262": -100, "300": 5}},
    "least tokens": {"extra_body": {"min_tokens": 50}},
    "a forced call": {"tools": [TOOL], "tool_choice": "required"},
    "two choices": {"n": 2},
    "a seed at temperature 0": {"seed": 7},
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of the built-in model, as an option of a worker."""
    folder = make_adapter(tmp_path_factory.mktemp("lora") / "adapter", 1)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return f"adapted={folder}"


@pytest.fixture(scope="module")
def expected(engines: Engines, adapter: str) -> dict[str, Any]:
    """Return what our own engine answers."""
    worker = engines.own(options=[f"--adapter={adapter}"])
    engines.ready(1)
    answers = {name: ask(engines, **asked) for name, asked in ASKED.items()}
    answers["prompt"] = echo(engines)
    answers["adapter"] = ask(engines, model="adapted")
    worker.stop()
    return answers


@pytest.fixture(scope="module")
def vllm_worker(engines: Engines, expected: dict[str, Any], adapter: str) -> Iterator[Process]:
    worker = engines.vllm(options=[f"--adapter={adapter}"])
    engines.ready(1)
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def vllm(engines: Engines, vllm_worker: Process) -> Engines:
    return engines


def ask(engines: Engines, **asked: Any) -> Any:
    usual: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 60}
    answer = engines.stack.client().chat.completions.create(**(usual | asked))
    return answer.model_dump(include={"choices", "usage"})


def echo(engines: Engines) -> Any:
    answer = engines.stack.client().completions.create(
        model=MODEL, prompt="Hello, how are you?", max_tokens=5, echo=True, logprobs=2, temperature=0
    )
    return answer.model_dump(include={"choices", "usage"})


@pytest.mark.parametrize("asked", ASKED)
def test_vllm_answers_as_our_own_engine(vllm: Engines, expected: dict[str, Any], asked: str) -> None:
    answer = ask(vllm, **ASKED[asked])

    assert _comparable(answer) == _comparable(expected[asked])


def test_prompt_logprobs_are_those_of_our_own_engine(vllm: Engines, expected: dict[str, Any]) -> None:
    assert _comparable(echo(vllm)) == _comparable(expected["prompt"])


def test_an_adapter_answers_as_at_our_own_engine(vllm: Engines, expected: dict[str, Any]) -> None:
    answer = ask(vllm, model="adapted")

    assert _comparable(answer) == _comparable(expected["adapter"])
    assert _comparable(answer) != _comparable(expected["plain"])


def test_a_seed_gives_the_same_answer_again_and_choices_differ(vllm: Engines) -> None:
    story = [{"role": "user", "content": "Tell a story."}]
    wild = {"messages": story, "temperature": 2.0, "max_tokens": 60, "n": 2}

    first, again, other = ask(vllm, seed=3, **wild), ask(vllm, seed=3, **wild), ask(vllm, **wild)

    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert texts[0] != texts[1]
    assert texts != [choice["message"]["content"] for choice in other["choices"]]


def test_a_sampled_answer_keeps_to_its_schema(vllm: Engines) -> None:
    answer = ask(vllm, temperature=1.5, response_format=FORM, max_tokens=200)

    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"name", "age"}


def test_a_client_that_leaves_frees_its_place(vllm: Engines) -> None:
    stream = vllm.stack.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    eventually("the sequence runs", lambda: vllm.stack.running() == 1)

    stream.close()

    eventually("no sequence runs", lambda: vllm.stack.running() == 0)


def test_its_processes_sleep_while_they_wait(vllm: Engines, vllm_worker: Process) -> None:
    processes = [psutil.Process(pid) for pid in descendants(vllm_worker.popen.pid)]
    ask(vllm)
    before = sum(process.cpu_times().user + process.cpu_times().system for process in processes)

    time.sleep(0.8)  # by itself, vLLM looks for the next step without a pause for a second

    after = sum(process.cpu_times().user + process.cpu_times().system for process in processes)
    assert after - before < 0.2


def test_many_streams_at_once_agree(vllm: Engines) -> None:
    texts: list[str] = []

    def read() -> None:
        texts.append(ask(vllm)["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=read) for _ in range(12)]  # more than there are places
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(texts) == 12
    assert len(set(texts)) == 1


def test_the_worker_shows_the_metrics_of_vllm(vllm: Engines) -> None:
    (url,) = vllm.stack.worker_urls()

    assert metric(url, "vllm:generation_tokens_total") > 0
    assert metric(url, "penstock_generated_tokens_total") > 0


def _comparable(answer: Any) -> Any:
    """The answer without what differs from run to run, and with numbers to three decimals."""
    match answer:
        case dict():
            return {
                name: _comparable(each) for name, each in answer.items() if name not in ("id", "prompt_tokens_details")
            }
        case list():
            return [_comparable(each) for each in answer]
        case float():
            return round(answer, 3)
    return answer
