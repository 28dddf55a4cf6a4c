"""LangChain's ChatOpenAI: invoke, stream, bind_tools and with_structured_output, as its page shows them."""

import asyncio
import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

llm = ChatOpenAI(model=os.environ["MODEL"], max_tokens=40)
forced = ChatOpenAI(model=os.environ["MODEL"], max_tokens=1000, temperature=1, seed=1)
MESSAGES = [("system", "Translate English to French."), ("human", "I love programming.")]


class GetWeather(BaseModel, extra="forbid"):
    """Get the current weather in a given location."""

    location: str = Field(description="The city and state", max_length=20)


class Joke(BaseModel, extra="forbid"):
    """A joke to tell."""

    setup: str = Field(max_length=20)
    rating: int = Field(ge=0, le=10)


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


answer = llm.invoke(MESSAGES)
assert answer.content and answer.usage_metadata["output_tokens"] > 0
print("invoke")

assert "".join(chunk.content for chunk in llm.stream(MESSAGES))
print("stream")

assert asyncio.run(llm.ainvoke(MESSAGES)).content
print("async")

assert llm.bind_tools([GetWeather, multiply]).invoke("What is the weather in LA?") is not None
print("bind_tools")

called = forced.bind_tools([GetWeather], tool_choice="GetWeather").invoke("What is the weather in LA?")
assert [call["name"] for call in called.tool_calls] == ["GetWeather"] and "location" in called.tool_calls[0]["args"]
print("bind_tools with a forced call")

for method in ("json_schema", "function_calling"):
    assert isinstance(forced.with_structured_output(Joke, method=method).invoke("Tell me a joke"), Joke)
print("with_structured_output")
