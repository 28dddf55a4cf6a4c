"""Instructor: a model as the answer, by its default mode (tools) and by JSON schema."""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

ASKED = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Extract: Jason is 25 years old."}],
    "temperature": 1,
    "seed": 1,
    "max_tokens": 1000,
}


class User(BaseModel, extra="forbid"):
    """Who was extracted."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=99)


client = instructor.from_openai(OpenAI())
assert isinstance(client.chat.completions.create(**ASKED, response_model=User, max_retries=0), User)
print("tools mode")

last = list(client.chat.completions.create_partial(**ASKED, response_model=User, max_retries=0))[-1]
assert last.name is not None and last.age is not None
print("partial stream")

client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
assert isinstance(client.chat.completions.create(**ASKED, response_model=User, max_retries=0), User)
print("schema mode")
