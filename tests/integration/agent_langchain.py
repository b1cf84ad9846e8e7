"""LangChain's two chat models, unchanged; prints what they say as JSON. Runs inside akbox."""

import json

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

claude, gpt = ChatAnthropic(model="claude-test"), ChatOpenAI(model="gpt-test")
seen = [
    claude.invoke("please reply 3").content,
    "".join(chunk.text for chunk in claude.stream("please reply 4")),
    gpt.invoke("please reply 3").content,
    "".join(chunk.content for chunk in gpt.stream("please reply 4")),
]
print(json.dumps(seen))
