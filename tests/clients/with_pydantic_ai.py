"""Runs Pydantic AI with an agent whose tool is called."""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel("penstock-tiny", provider=OpenAIProvider(base_url=sys.argv[1], api_key="none"))
agent = Agent(model, model_settings={"temperature": 0})
asked: list[str] = []


@agent.tool_plain
def get_weather(city: str) -> str:
    """The weather in a city"""
    asked.append(city)
    return "18 degrees and sunny"


done = agent.run_sync("What is the weather in Paris?")
assert asked == ["Paris"], done.all_messages()
assert "18 degrees and sunny" in done.output, done.output
print("pydantic-ai")
