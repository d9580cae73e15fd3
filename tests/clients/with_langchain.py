"""Runs LangChain: chat, stream, tools, structured output and embeddings."""

import asyncio
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

base = sys.argv[1]
llm = ChatOpenAI(model="penstock-tiny", base_url=base, api_key="none", temperature=0)


@tool
def get_weather(city: str) -> str:
    """The weather in a city"""
    return "18 degrees and sunny"


class Capital(BaseModel):
    """A country and its capital."""

    country: str
    capital: str


assert llm.invoke("Count to 5.").content == "1, 2, 3, 4, 5."
assert "".join(chunk.content for chunk in llm.stream("Count to 5.")) == "1, 2, 3, 4, 5."
assert [answer.content for answer in llm.batch(["Count to 3.", "Count to 4."])] == ["1, 2, 3.", "1, 2, 3, 4."]
assert asyncio.run(llm.ainvoke("Count to 3.")).usage_metadata["output_tokens"] > 0

talk = [HumanMessage("What is the weather in Paris?")]
said = llm.bind_tools([get_weather]).invoke(talk)
assert [(call["name"], call["args"]) for call in said.tool_calls] == [("get_weather", {"city": "Paris"})], said
talk += [said, get_weather.invoke(said.tool_calls[0])]
assert isinstance(talk[-1], ToolMessage)
told = llm.bind_tools([get_weather]).invoke(talk).content
assert "18 degrees and sunny" in told, told
streamed = None
for chunk in llm.bind_tools([get_weather]).stream("What is the weather in Rome?"):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed.tool_calls[0]["args"] == {"city": "Rome"}, streamed

for method in ("json_schema", "function_calling"):
    asked = "What is the capital of Italy? Answer in JSON."
    made = llm.with_structured_output(Capital, method=method).invoke(asked)
    assert isinstance(made, Capital), made
    assert method == "function_calling" or made == Capital(country="Italy", capital="Rome"), made

vectors = OpenAIEmbeddings(model="penstock-tiny", base_url=base, api_key="none", check_embedding_ctx_length=False)
one, two = vectors.embed_documents(["one", "two"])
assert len(one) == len(two) > 0 and vectors.embed_query("one") == one

through_responses = ChatOpenAI(
    model="penstock-tiny", base_url=base, api_key="none", temperature=0, use_responses_api=True
)
assert through_responses.invoke("Count to 3.").text == "1, 2, 3."
print("langchain")
