"""Measures how often the built-in model answers each topic exactly as its dialogues do: the model card's table.
`python -m tools.tiny_model.evaluate [QUESTIONS_PER_TOPIC]`"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from shared.settings import load_settings
from tools.tiny_model.dialogues import TOPICS, Pair
from tools.tiny_model.tool_talks import Talk, json_talk, tool_talk
from workers.engines.native.loader import load_engine
from workers.engines.offline import compute_all
from workers.loading.model_spec import parse_specs
from workers.protocols import Engine
from workers.runs.detokenizer import IncrementalDetokenizer
from workers.scheduling.sequence import Sampled, SamplingParams, Sequence

SEED = 99
FREE = ("story", "unknown")  # many answers are right, so only the end or the refusal counts
Question = tuple[dict[str, Any], str]  # a chat's request and the answer that was trained


def answers(engine: Engine, requests: list[dict[str, Any]]) -> list[str]:
    """Answer all questions greedily in one batch."""
    greedy = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
    tokenizer = engine.tokenizer
    texts: dict[Sequence, str] = {}
    detokenizers: dict[Sequence, IncrementalDetokenizer] = {}
    for at, request in enumerate(requests):
        sequence = Sequence(job_id=str(at), choice=0, prompt=tokenizer.chat(request).ids, sampling=greedy)
        texts[sequence] = ""
        detokenizers[sequence] = IncrementalDetokenizer(
            tokenizer.decode, eos_ids=tokenizer.eos_ids, stop=(), tokens_max=400
        )

    def ended(sequence: Sequence, new: Sampled) -> bool:
        text, reason = detokenizers[sequence].push(new.token)
        texts[sequence] += text
        return reason is not None

    compute_all(engine, detokenizers, ended)
    return list(texts.values())


def plain(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]}


def asked(ask: Callable[[Random], Pair], rng: Random) -> Question:
    question, answer = ask(rng)
    return plain(question), answer


def last_of(talk: Callable[[Random], Talk], rng: Random, *, results: bool) -> Question:
    """Draw questions from talks that end with a tool's result, or from those that do not."""
    while True:
        messages, tools = talk(rng)
        if results == any(message["role"] == "tool" for message in messages):
            break
    *before, last = messages
    request = {"messages": list(map(_sent, before)), "tools": tools, "tool_choice": "auto", "parallel": True}
    return request, last["content"] or "\n".join(_written(last["tool_calls"]))


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """Convert a message to the form that clients send."""
    calls = [
        {"id": "call", "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return message | ({"tool_calls": calls} if calls else {})


def _written(calls: list[dict[str, Any]]) -> Iterator[str]:
    for call in calls:
        yield f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"


QUESTIONS: dict[str, Callable[[Random], Question]] = {
    **{ask.__name__: partial(asked, ask) for ask, _ in TOPICS},
    "tools: the call": partial(last_of, tool_talk, results=False),
    "tools: the answer": partial(last_of, tool_talk, results=True),
    "JSON": partial(last_of, json_talk, results=False),
}


def right(topic: str, taught: str, answer: str) -> bool:
    if topic in FREE:
        return answer.endswith(taught[-6:])
    return answer == taught


def main(count: int) -> None:
    engine = load_engine(parse_specs(["builtin"])[0], load_settings(sequences_max=64))
    print("| topic | answered as taught |\n|---|---|")
    for topic, draw in QUESTIONS.items():
        rng = Random(SEED)
        questions = [draw(rng) for _ in range(count)]
        said = answers(engine, [request for request, _ in questions])
        good = sum(right(topic, taught, answer) for (_, taught), answer in zip(questions, said, strict=True))
        print(f"| {topic} | {100 * good / count:.0f} % |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
