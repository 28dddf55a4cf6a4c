// OpenAI's library for Node: the examples of its README.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Say this is a test" }];
const parameters = {
  type: "object", properties: { day: { enum: ["today", "tomorrow"] } }, required: ["day"], additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const forced = {
  model, messages, tools, tool_choice: { type: "function", function: { name: "weather" } },
  max_tokens: 1000, temperature: 1, seed: 1,
};

const chat = await client.chat.completions.create({ model, messages, max_tokens: 40 });
assert(chat.choices[0].message.content);
console.log("chat");

let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 40, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert(text);
console.log("chat stream");

const called = await client.chat.completions.create(forced);
assert(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).day);
const streamed = await client.chat.completions.stream(forced).finalMessage();
assert(JSON.parse(streamed.tool_calls[0].function.arguments).day);
console.log("forced tools, whole and streamed");

const response = await client.responses.create({ model, input: "Say this is a test", max_output_tokens: 40 });
assert(response.output_text);
console.log("responses");
