"""Runs LiteLLM's SDK, and its proxy in front of Penstock: `python with_litellm.py BASE_URL PROXY_URL KEY`."""

import os
import sys

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}

import litellm
import openai

base, proxy, key = sys.argv[1:]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text, **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


there = {"model": "openai/penstock-tiny", "api_base": base, "api_key": "none"}
assert litellm.completion(**there, **ask("Count to 5.")).choices[0].message.content == "1, 2, 3, 4, 5."
text = "".join(c.choices[0].delta.content or "" for c in litellm.completion(stream=True, **there, **ask("Count to 5.")))
assert text == "1, 2, 3, 4, 5.", text
called = litellm.completion(**there, **ask("What is the weather in Paris?", tools=[WEATHER])).choices[0]
assert called.message.tool_calls[0].function.arguments == '{"city": "Paris"}', called
assert len(litellm.embedding(**there, input=["one", "two"]).data) == 2

with openai.OpenAI(base_url=f"{proxy}/v1", api_key=key, max_retries=0) as client:
    whole = client.chat.completions.create(model="small", **ask("Count to 5."))
    assert whole.choices[0].message.content == "1, 2, 3, 4, 5."
    chunks = client.chat.completions.create(model="small", stream=True, **ask("Count to 5."))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "1, 2, 3, 4, 5."
    said = client.chat.completions.create(model="small", **ask("What is the weather in Rome?", tools=[WEATHER]))
    assert said.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}', said
    try:
        client.chat.completions.create(model="small", extra_headers={"x-penstock-priority": "first"}, **ask("Hello"))
    except openai.BadRequestError as error:
        assert "interactive, standard or batch is expected" in error.message, error
    else:
        raise AssertionError("the priority did not arrive")
print("litellm")
