"""Runs instructor, with tools and with a JSON schema."""

import sys

import instructor
import openai
from pydantic import BaseModel


class User(BaseModel):
    name: str
    age: int


client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    made = instructor.from_openai(client, mode=mode).chat.completions.create(
        model="penstock-tiny",
        response_model=User,
        max_retries=0,
        temperature=0,
        messages=[{"role": "user", "content": "Anna is 25 years old."}],
    )
    assert isinstance(made, User), made
    assert mode is not instructor.Mode.TOOLS or (made.name, made.age) == ("Anna", 25), made
print("instructor")
