// What agent_models.py does, with the providers' SDKs for Node.js. Runs inside akbox; prints what it saw as JSON.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const claude = new Anthropic();
const gpt = new OpenAI();
const ask = (content) => [{ role: "user", content }];
const seen = {};

const message = await claude.messages.create({ model: "claude-test", max_tokens: 50, messages: ask("please reply 5") });
seen.message = [message.content[0].text, message.usage.output_tokens];

let text = "";
const stream = claude.messages.stream({ model: "claude-test", max_tokens: 50, messages: ask("please reply 4") });
stream.on("text", (piece) => (text += piece));
const last = await stream.finalMessage();
seen["message stream"] = [text, last.usage.output_tokens];

const chat = await gpt.chat.completions.create({ model: "gpt-test", messages: ask("please reply 3") });
seen.chat = [chat.choices[0].message.content, chat.usage.total_tokens];

text = "";
for await (const event of await gpt.responses.create({ model: "gpt-test", input: "please reply 2", stream: true }))
  if (event.type === "response.output_text.delta") text += event.delta;
seen["response stream"] = text;

for (const [name, call] of [
  ["denied", () => gpt.chat.completions.create({ model: "other", messages: ask("x") })],
  ["over budget", () => claude.messages.create({ model: "claude-test", max_tokens: 9, messages: ask("word ".repeat(310000)) })],
]) {
  try {
    await call();
  } catch (error) {
    seen[name] = [error.constructor.name, error.status];
  }
}
console.log(JSON.stringify(seen));
