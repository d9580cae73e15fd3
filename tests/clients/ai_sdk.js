// Runs Vercel's AI SDK through chat completions and responses: text, a stream, tools in a loop, and an object.
import assert from "node:assert";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { Penstock } from "../../clients/js/penstock.js";

const settings = { baseURL: process.argv[2], apiKey: "none" };
const openai = createOpenAI(settings);
const models = {
  chat: openai.chat("penstock-tiny"),
  compatible: createOpenAICompatible({ ...settings, name: "penstock", supportsStructuredOutputs: true })("penstock-tiny"),
  responses: openai.responses("penstock-tiny"),
  resumed: createOpenAI({ ...settings, fetch: new Penstock({ baseURL: process.argv[2] }).fetch }).chat("penstock-tiny"),
  resumedResponses: createOpenAI({ ...settings, fetch: new Penstock({ baseURL: process.argv[2] }).fetch }).responses("penstock-tiny"),
};

const get_weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => "18 degrees and sunny",
});
const weather = { tools: { get_weather }, prompt: "What is the weather in Paris?", stopWhen: stepCountIs(3) };

for (const [name, model] of Object.entries(models)) {
  const asked = { model, temperature: 0, maxRetries: 0 };
  const counted = await generateText({ ...asked, prompt: "Count to 5." });
  assert.equal(counted.text, "1, 2, 3, 4, 5.", name);
  assert.ok(counted.usage.outputTokens > 0, name);

  const streamed = streamText({ ...asked, prompt: "Count to 5." });
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, "1, 2, 3, 4, 5.", name);

  const told = await generateText({ ...asked, ...weather });
  assert.match(told.text, /18 degrees and sunny/, name);
  assert.deepEqual(told.steps.map((step) => step.toolCalls.map((call) => call.input)), [[{ city: "Paris" }], []], name);
  const saying = streamText({ ...asked, ...weather });
  await saying.consumeStream();
  assert.match(await saying.text, /18 degrees and sunny/, name);

  const schema = z.object({ country: z.string(), capital: z.string() });
  const made = await generateText({
    ...asked,
    output: Output.object({ schema }),
    prompt: "What is the capital of Italy? Answer in JSON.",
  });
  assert.deepEqual(made.output, { country: "Italy", capital: "Rome" }, name);
}
console.log("ai");
