// openai for Node: `node openai_node.js BASE_URL`.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const ask = (content, more = {}) => ({
  model: "penstock-tiny",
  messages: [{ role: "user", content }],
  temperature: 0,
  ...more,
});
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const whole = await client.chat.completions.create(ask("Count to 5."));
assert.equal(whole.choices[0].message.content, "1, 2, 3, 4, 5.");

let text = "";
for await (const chunk of await client.chat.completions.create(ask("Count to 5.", { stream: true }))) {
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, "1, 2, 3, 4, 5.");

const runner = client.chat.completions.stream(ask("What is the weather in Paris?", { tools: [weather] }));
const final = await runner.finalChatCompletion();
assert.equal(final.choices[0].finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: "Paris" });

const asked = [];
const agent = client.chat.completions.runTools({
  ...ask("What is the weather in Rome?"),
  tools: [
    {
      type: "function",
      function: {
        ...weather.function,
        parse: JSON.parse,
        function: ({ city }) => {
          asked.push(city);
          return "18 degrees and sunny";
        },
      },
    },
  ],
});
assert.match(await agent.finalContent(), /18 degrees and sunny/);
assert.deepEqual(asked, ["Rome"]);

const made = await client.responses.create({ model: "penstock-tiny", input: "Count to 3.", temperature: 0 });
assert.equal(made.output_text, "1, 2, 3.");
const kinds = [];
for await (const event of await client.responses.create({ model: "penstock-tiny", input: "Count to 3.", stream: true })) {
  kinds.push(event.type);
}
assert.equal(kinds.at(-1), "response.completed");

const vectors = await client.embeddings.create({ model: "penstock-tiny", input: ["one", "two"] });
assert.equal(vectors.data.length, 2);
assert.ok(vectors.data[0].embedding.length > 0);

const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: ask("Count to 3.") };
const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "a.jsonl"), purpose: "batch" });
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (["validating", "in_progress", "finalizing"].includes(batch.status)) batch = await client.batches.retrieve(batch.id);
assert.equal(batch.status, "completed");
const answer = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
assert.equal(answer.response.body.choices[0].message.content, "1, 2, 3.");

await assert.rejects(client.chat.completions.create({ ...ask("Hi"), model: "nobody" }), (error) => {
  assert.equal(error.status, 404);
  assert.equal(error.code, "model_not_found");
  return true;
});
console.log("openai for node");
