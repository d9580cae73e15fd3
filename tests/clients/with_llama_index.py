"""Runs LlamaIndex: chat, stream, tools and embeddings."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

base = sys.argv[1]
llm = OpenAILike(
    model="penstock-tiny",
    api_base=base,
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
    context_window=2048,
)


def get_weather(city: str) -> str:
    """The weather in a city"""
    return f"18 degrees and sunny in {city}"


asked = [ChatMessage(role="user", content="Count to 5.")]
assert llm.chat(asked).message.content == "1, 2, 3, 4, 5."
assert [step.message.content for step in llm.stream_chat(asked)][-1] == "1, 2, 3, 4, 5."
tool = FunctionTool.from_defaults(get_weather)
said = llm.chat_with_tools([tool], user_msg="What is the weather in Paris?")
calls = llm.get_tool_calls_from_response(said)
assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("get_weather", {"city": "Paris"})], said
answer = llm.predict_and_call([tool], user_msg="What is the weather in Rome?")
assert str(answer) == "18 degrees and sunny in Rome", answer
plain = OpenAILike(model="penstock-tiny", api_base=base, api_key="none", is_chat_model=False, max_tokens=4)
assert plain.complete("Hello").text

embedder = OpenAILikeEmbedding(model_name="penstock-tiny", api_base=base, api_key="none")
one, two = embedder.get_text_embedding_batch(["one", "two"])
assert len(one) == len(two) > 0
print("llama-index")
