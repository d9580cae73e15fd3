"""LiteLLM's SDK, and its proxy in front of Penstock: `python with_litellm.py BASE_URL FOLDER PORT`."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}

import litellm
import openai

KEY = "sk-0123456789abcdef0123456789abcdef"
base, folder, port = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
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

config = folder / "litellm.yaml"
config.write_text(f"""
model_list:
  - model_name: small
    litellm_params: {{model: openai/penstock-tiny, api_base: {base}, api_key: none}}
general_settings: {{master_key: {KEY}}}
""")
log = (folder / "litellm.log").open("wb")
command = [str(Path(sys.executable).parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", port]
proxy = subprocess.Popen(command, stdout=log, stderr=log)
try:
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2).close()
            break
        except OSError:
            assert proxy.poll() is None and time.monotonic() < deadline, (folder / "litellm.log").read_text()
            time.sleep(0.2)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0) as client:
        whole = client.chat.completions.create(model="small", **ask("Count to 5."))
        assert whole.choices[0].message.content == "1, 2, 3, 4, 5."
        chunks = client.chat.completions.create(model="small", stream=True, **ask("Count to 5."))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "1, 2, 3, 4, 5."
        said = client.chat.completions.create(model="small", **ask("What is the weather in Rome?", tools=[WEATHER]))
        assert said.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}', said
finally:
    proxy.terminate()
    proxy.wait()
print("litellm")
