"""Runs the OpenAI Agents SDK through chat completions and responses: an agent whose tool is called, streamed and whole,
and a conversation that the server keeps."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
set_tracing_disabled(True)
asked: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city"""
    asked.append(city)
    return "18 degrees and sunny"


async def main() -> None:
    for model in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        made = model("penstock-tiny", openai_client=client)
        agent = Agent(name="a", model=made, tools=[get_weather], model_settings=ModelSettings(temperature=0))
        done = await Runner.run(agent, "What is the weather in Paris?")
        assert asked.pop() == "Paris", done
        assert "18 degrees and sunny" in done.final_output, done.final_output

        streamed = Runner.run_streamed(agent, "What is the weather in Rome?")
        kinds = [event.type async for event in streamed.stream_events()]
        assert asked.pop() == "Rome"
        assert "raw_response_event" in kinds and "18 degrees and sunny" in streamed.final_output, streamed.final_output

    session = OpenAIConversationsSession(openai_client=client)
    await Runner.run(agent, "What is the weather in Paris?", session=session)
    kinds = [item["type"] for item in await session.get_items()]
    assert kinds == ["message", "function_call", "function_call_output", "message"], kinds
    await session.clear_session()


asyncio.run(main())
print("openai-agents")
