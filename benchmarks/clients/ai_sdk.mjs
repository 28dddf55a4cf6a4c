// Vercel's AI SDK with its OpenAI-compatible provider: text, stream, object and tools.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "servekit",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(process.env.MODEL);
const day = z.object({ day: z.enum(["today", "tomorrow"]) }).strict();
const prompt = "What is the weather?";
const many = { maxOutputTokens: 1000, temperature: 1, seed: 1 };

const { text, usage } = await generateText({ model, prompt, maxOutputTokens: 40 });
assert(text && usage.outputTokens === 40);
console.log("generateText");

let streamed = "";
for await (const part of streamText({ model, prompt, maxOutputTokens: 40 }).textStream) streamed += part;
assert(streamed);
console.log("streamText");

const { object } = await generateObject({ model, prompt, schema: day, ...many });
assert(object.day);
console.log("generateObject");

const tools = { weather: tool({ description: "The weather", inputSchema: day, execute: async () => "sunny" }) };
const toolChoice = { type: "tool", toolName: "weather" };
const { toolCalls } = await generateText({ model, prompt, tools, toolChoice, ...many });
assert(toolCalls[0].input.day);
const calls = await streamText({ model, prompt, tools, toolChoice, ...many }).toolCalls;
assert(calls[0].input.day);
console.log("tools, whole and streamed");
