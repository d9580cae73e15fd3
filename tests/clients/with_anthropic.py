"""Runs Anthropic's own client: whole and streamed messages, tools, thinking, counts, models and errors. The second
argument is a model that reasons; its answer to `fail` fails after its first words."""

import sys

import anthropic

MODEL, THINKER = "penstock-tiny", sys.argv[2]
client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=60)
greedy = {"extra_body": {"temperature": 0}}  # a field that this client has no more
question = {"role": "user", "content": "What is 3 + 4?"}

message = client.messages.create(model=MODEL, max_tokens=50, messages=[question], **greedy)
assert (message.content[0].text, message.stop_reason) == ("3 + 4 = 7.", "end_turn"), message
assert message.usage.output_tokens > 0
assert message._request_id.startswith("req_"), message._request_id

counted = client.messages.count_tokens(model=MODEL, messages=[question], system="Be brief.")
brief = client.messages.create(model=MODEL, max_tokens=5, messages=[question], system="Be brief.")
assert counted.input_tokens == brief.usage.input_tokens + brief.usage.cache_read_input_tokens > 0

stopped = client.messages.create(model=MODEL, max_tokens=50, messages=[question], **greedy, stop_sequences=["="])
assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == ("3 + 4 ", "stop_sequence", "=")

with client.messages.stream(model=MODEL, max_tokens=50, messages=[question], **greedy) as stream:
    assert "".join(stream.text_stream) == "3 + 4 = 7."
    final = stream.get_final_message()
    assert (final.content[0].text, final.usage.output_tokens) == ("3 + 4 = 7.", message.usage.output_tokens), final

weather = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
asked = {"role": "user", "content": "What is the weather in Paris?"}
forced = {"type": "tool", "name": "get_weather"}
with client.messages.stream(
    model=MODEL, max_tokens=100, messages=[asked], tools=[weather], tool_choice=forced, **greedy
) as stream:
    parts = [event.partial_json for event in stream if event.type == "input_json"]
    called = stream.get_final_message()
assert called.stop_reason == "tool_use", called
(use,) = [block for block in called.content if block.type == "tool_use"]
assert (use.name, use.input) == ("get_weather", {"city": "Paris"}), use
assert len(parts) > 1, parts
result = {"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees and sunny"}
history = [asked, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
told = client.messages.create(model=MODEL, max_tokens=100, messages=history, tools=[weather], **greedy)
assert "18 degrees and sunny" in told.content[0].text, told

thinking = {"type": "enabled", "budget_tokens": 1024}
for display, expected in ((None, "I think."), ("omitted", "")):
    shown = thinking | ({"display": display} if display else {})
    with client.messages.stream(model=THINKER, max_tokens=2000, messages=[question], thinking=shown) as stream:
        thought, text = stream.get_final_message().content
    assert (thought.type, thought.thinking, text.text) == ("thinking", expected, "I answer."), (thought, text)
    again = [question, {"role": "assistant", "content": [thought, text]}, question]
    assert client.messages.create(model=THINKER, max_tokens=50, messages=again).content[0].text == "I thought: I think."
unasked = client.messages.create(model=THINKER, max_tokens=50, messages=[question])
assert [block.type for block in unasked.content] == ["text"], unasked

assert {model.id for model in client.models.list()} >= {MODEL, THINKER}
assert client.models.retrieve(MODEL).max_input_tokens > 0

image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
wrong = (
    (anthropic.NotFoundError, {"model": "nobody"}, "nobody"),
    (anthropic.BadRequestError, {"messages": [{"role": "user", "content": [image]}]}, "'image'"),
    (anthropic.BadRequestError, {"extra_body": {"colour": "blue"}}, "colour"),
    (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "word " * 5000}]}, "prompt is too long"),
)
for kind, more, named in wrong:
    try:
        client.messages.create(**{"model": MODEL, "max_tokens": 9, "messages": [question], **more})
        raise SystemExit(f"no {kind.__name__}")
    except kind as error:
        assert named in error.body["error"]["message"], error.body
        assert error.body["request_id"] == error.request_id, error.body
try:
    client.models.retrieve("nobody")
    raise SystemExit("no NotFoundError")
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error"

failing = {"role": "user", "content": "fail"}
with client.messages.stream(model=THINKER, max_tokens=9, messages=[failing]) as stream:
    try:
        stream.until_done()
        raise SystemExit("no error")
    except anthropic.APIStatusError as error:
        assert error.body["error"]["type"] == "api_error", error.body
print(f"anthropic {anthropic.__version__}")
