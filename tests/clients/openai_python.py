"""Runs the openai client for Python, from 1.60 on: `python openai_python.py BASE_URL`."""

import asyncio
import io
import json
import sys
from typing import Any

import openai
from pydantic import BaseModel

MODEL = "penstock-tiny"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Capital(BaseModel):
    country: str
    capital: str


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ask("Count to 5."))
    assert whole.choices[0].message.content == "1, 2, 3, 4, 5.", whole
    chunks = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask("Count to 5."))
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "1, 2, 3, 4, 5."
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    try:
        client.chat.completions.create(**{**ask("Hi"), "model": "nobody"})
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.request_id
    else:
        raise AssertionError("a model that is not there answered")
    assert client.models.retrieve(MODEL).id == MODEL
    assert MODEL in [model.id for model in client.models.list()]


def tools(client: openai.OpenAI) -> None:
    asked = ask("What is the weather in Paris?", tools=[WEATHER])
    first = client.chat.completions.create(**asked).choices[0]
    call = first.message.tool_calls[0]
    assert first.finish_reason == "tool_calls" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
    told = [*asked["messages"], first.message, result]
    answer = client.chat.completions.create(**{**asked, "messages": told}).choices[0].message.content
    assert "18 degrees and sunny" in answer, answer


def helpers(client: openai.OpenAI) -> None:
    """Use `.stream()` and `.parse()`, which left beta in the middle of 1.x."""
    completions = client.chat.completions if hasattr(client.chat.completions, "parse") else client.beta.chat.completions
    parsed = completions.parse(**ask("What is the capital of Italy? Answer in JSON."), response_format=Capital)
    assert parsed.choices[0].message.parsed == Capital(country="Italy", capital="Rome"), parsed
    with completions.stream(**ask("What is the weather in Rome?", tools=[WEATHER])) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Rome"}


def responses(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Count to 3.", temperature=0)
    assert made.output_text == "1, 2, 3.", made
    with client.responses.stream(model=MODEL, input="Count to 3.", temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    parsed = client.responses.parse(
        model=MODEL, input="What is the capital of Peru? Answer in JSON.", text_format=Capital, temperature=0
    )
    assert parsed.output_parsed == Capital(country="Peru", capital="Lima"), parsed
    background = client.responses.create(model=MODEL, input="Count to 4.", temperature=0, background=True)
    while background.status in ("queued", "in_progress"):
        background = client.responses.retrieve(background.id)
    assert background.output_text == "1, 2, 3, 4.", background


def completions_and_embeddings(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt=["Hello", "Hi"], max_tokens=4, echo=True, logprobs=1)
    assert [choice.text[:2] for choice in text.choices] == ["He", "Hi"]
    vectors = client.embeddings.create(model=MODEL, input=["one", "two"]).data
    assert len(vectors) == 2 and len(vectors[0].embedding) == len(vectors[1].embedding) > 0


def files_and_batches(client: openai.OpenAI) -> None:
    lines = [
        json.dumps(
            {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": ask(f"Count to {n}.")}
        )
        for n in (3, 4)
    ]
    given = client.files.create(file=("ask.jsonl", io.BytesIO("\n".join(lines).encode())), purpose="batch")
    batch = client.batches.create(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.output_file_id, batch
    said = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in said}
    assert texts == {"3": "1, 2, 3.", "4": "1, 2, 3, 4."}, texts
    assert client.files.delete(given.id).deleted


async def many(base: str) -> None:
    async with openai.AsyncOpenAI(base_url=base, api_key="none") as client:
        stream = await client.chat.completions.create(stream=True, **ask("Count to 3."))
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        answers = await asyncio.gather(*[client.chat.completions.create(**ask("Count to 3.")) for _ in range(8)])
    assert {text, *[answer.choices[0].message.content for answer in answers]} == {"1, 2, 3."}


base = sys.argv[1]
with openai.OpenAI(base_url=base, api_key="none") as one:
    chat(one)
    tools(one)
    helpers(one)
    completions_and_embeddings(one)
    files_and_batches(one)
    if hasattr(one, "responses"):
        responses(one)
asyncio.run(many(base))
print("openai", openai.__version__)
