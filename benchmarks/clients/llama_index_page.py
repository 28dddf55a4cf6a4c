"""LlamaIndex's OpenAILike: complete, chat and stream, and structured output by a forced tool."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

PLACE = {"model": os.environ["MODEL"], "api_base": os.environ["OPENAI_BASE_URL"], "is_chat_model": True}
MESSAGES = [ChatMessage(role="user", content="What is your name?")]
llm = OpenAILike(**PLACE, max_tokens=40)


class Song(BaseModel, extra="forbid"):
    """A song."""

    title: str = Field(max_length=20)


assert llm.complete("Paul Graham is ").text
print("complete")
assert llm.chat(MESSAGES).message.content
print("chat")
assert "".join(chunk.delta or "" for chunk in llm.stream_chat(MESSAGES))
print("stream")
settings = {"max_tokens": 1000, "temperature": 1, "additional_kwargs": {"seed": 1}}
forced = OpenAILike(**PLACE, is_function_calling_model=True, **settings)
assert isinstance(forced.as_structured_llm(Song).chat(MESSAGES).raw, Song)
print("structured output")
