"""Pydantic AI: an agent, its stream, and an agent with an output type and a tool."""

import asyncio
import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

MODEL = OpenAIChatModel(os.environ["MODEL"])
SETTINGS = {"max_tokens": 40}


class City(BaseModel, extra="forbid"):
    """A city."""

    city: str = Field(max_length=20)
    country: str = Field(max_length=20)


agent = Agent(MODEL, instructions="Be concise, reply with one sentence.", model_settings=SETTINGS)
assert agent.run_sync('Where does "hello world" come from?').output
print("agent")


async def stream() -> str:
    """Return the whole text of a stream."""
    async with agent.run_stream("Hello") as result:
        return "".join([text async for text in result.stream_text(delta=True)])


assert asyncio.run(stream())
print("stream")

typed = Agent(MODEL, output_type=City, model_settings={"temperature": 1, "seed": 1, "max_tokens": 1000})
assert isinstance(typed.run_sync("The windy city in the US of A.").output, City)
print("output type")

helped = Agent(MODEL, model_settings=SETTINGS)


@helped.tool_plain
def roll_dice() -> str:
    """Roll a six-sided die and return the result."""
    return "4"


assert helped.run_sync("My guess is 4").output
print("tool")
