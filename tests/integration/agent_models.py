"""What an agent does with its providers' own SDKs, unchanged; prints what it saw as JSON. Runs inside akbox."""

import json
import os
import sys

import anthropic
import openai

claude, gpt = anthropic.Anthropic(), openai.OpenAI()
seen: dict[str, object] = {}

message = claude.messages.create(
    model="claude-test", max_tokens=50, messages=[{"role": "user", "content": "please reply 5"}]
)
seen["message"] = [message.content[0].text, message.usage.input_tokens, message.usage.output_tokens]

with claude.messages.stream(
    model="claude-test", max_tokens=50, messages=[{"role": "user", "content": "please reply 6"}]
) as stream:
    pieces = list(stream.text_stream)
    seen["message stream"] = ["".join(pieces), len(pieces), stream.get_final_message().usage.output_tokens]

tool = {
    "name": "look",
    "description": "looks",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
}
asked = claude.messages.create(
    model="claude-test", max_tokens=2048, tools=[tool], messages=[{"role": "user", "content": "call-tool look reply 1"}]
)
seen["message tool"] = [asked.stop_reason, asked.content[-1].name, asked.content[-1].input]
seen["count"] = claude.messages.count_tokens(
    model="claude-test", messages=[{"role": "user", "content": "one two three"}]
).input_tokens

chat = gpt.chat.completions.create(model="gpt-test", messages=[{"role": "user", "content": "please reply 3"}])
seen["chat"] = [chat.choices[0].message.content, chat.usage.total_tokens]
chunks = list(
    gpt.chat.completions.create(model="gpt-test", stream=True, messages=[{"role": "user", "content": "please reply 4"}])
)
seen["chat stream"] = [
    "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    sum(not c.choices for c in chunks),
]
with_usage = list(
    gpt.chat.completions.create(
        model="gpt-test",
        stream=True,
        stream_options={"include_usage": True},
        messages=[{"role": "user", "content": "please reply 4"}],
    )
)
seen["chat stream usage"] = with_usage[-1].usage.completion_tokens

response = gpt.responses.create(model="gpt-test", input="please reply 2")
seen["response"] = [response.output_text, response.usage.total_tokens]
seen["response stream"] = [e.type for e in gpt.responses.create(model="gpt-test", input="please reply 2", stream=True)][
    -1
]
seen["embedding"] = gpt.embeddings.create(
    model="embed-test", input=["a b"], encoding_format="float"
).usage.prompt_tokens
seen["models"] = [[m.id for m in claude.models.list()], [m.id for m in gpt.models.list()]]


def refusal(call):
    try:
        call()
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        return [type(error).__name__, error.status_code]
    return None


seen["denied"] = refusal(lambda: gpt.responses.create(model="other", input="x"))
long = "word " * 9000
seen["over budget"] = [
    refusal(
        lambda: claude.messages.create(model="claude-test", max_tokens=9, messages=[{"role": "user", "content": long}])
    ),
    refusal(lambda: gpt.chat.completions.create(model="gpt-test", messages=[{"role": "user", "content": long}])),
]


def found(where: str, what: bytes) -> bool:
    try:
        with open(where, "rb") as file:
            return what in file.read()
    except OSError:
        return False


needle = sys.argv[1].encode()[::-1]  # the real key, backwards: so that this program's own arguments do not hold it
seen["key"] = [
    any(needle in os.fsencode(value) for value in os.environ.values()),
    any(
        found(f"/proc/{pid}/{name}", needle)
        for pid in os.listdir("/proc")
        if pid.isdecimal()
        for name in ("environ", "cmdline")
    ),
]
seen["names"] = sorted(name for name in os.environ if name.startswith(("ANTHROPIC", "OPENAI", "REAL", "CODEX")))
print(json.dumps(seen))
