// The JavaScript client in Node: `node penstock_js.js BASE_URL,BASE_URL`. Lines on stdout tell the test when to kill.
import assert from "node:assert/strict";

import { Penstock, PenstockError } from "../../clients/js/penstock.js";

const [first, second] = process.argv[2].split(",");
const client = new Penstock({ baseURL: [first, second] });
const body = (content, max_tokens) => ({
  model: "scripted",
  messages: [{ role: "user", content }],
  max_tokens,
  temperature: 0,
});
const textOf = (frame) => frame.data?.choices?.[0]?.delta?.content ?? "";

async function read(frames, until = Infinity, told = "") {
  let [text, count, last] = ["", 0, undefined];
  for await (const frame of frames) {
    text += textOf(frame);
    last = frame;
    if (++count === 10 && told) console.log(told);
    if (count === until) break;
  }
  return { text, last };
}

// One stream through the death of a worker, and one through that of an API.
const whole = await read(client.stream(body("the whole", 400)), Infinity, "kill worker");
assert.equal(whole.last.data, "[DONE]");
const broken = await read(client.stream(body("the whole", 400)), Infinity, "kill api");
assert.equal(broken.last.data, "[DONE]");
assert.equal(broken.text, whole.text);

// A stream that another object picks up, as a page does that was loaded again.
const half = await read(client.stream(body("the whole", 400), { headers: { "x-penstock-grace-s": "30" } }), 50);
const other = new Penstock({ baseURL: second });
const rest = await read(other.resume(half.last.jobId, { lastEventId: half.last.id }));
assert.equal(half.text + rest.text, whole.text);

// A response, whose frames are numbered in their own way.
const request = { model: "scripted", input: "the whole", max_output_tokens: 100, temperature: 0 };
let [said, behind] = ["", undefined];
for await (const { id, jobId, data } of other.stream(request, { path: "/responses" })) {
  if (data.type === "response.output_text.delta") said += data.delta;
  behind = { id, jobId };
  if (said.length > 100) break;
}
let completed;
for await (const { data } of client.resume(behind.jobId, { lastEventId: behind.id })) {
  if (data.type === "response.output_text.delta") said += data.delta;
  completed = data.response;
}
assert.equal(completed.status, "incomplete");
assert.equal(completed.output[0].content[0].text, said);

// A message, which ends by an event of its own: a stream that did not end there would be picked up, or break.
const once = new Penstock({ baseURL: second, retries: 0 });
const message = await read(once.stream(body("the whole", 20), { path: "/messages" }));
assert.equal(message.last.data.type, "message_stop");

// Through the `fetch` of other clients, and a cancel of what nobody reads any more.
const asked = { method: "POST", body: JSON.stringify({ ...body("the whole", 400), stream: true }) };
const headers = { "content-type": "application/json" };
const response = await other.fetch(`${second}/chat/completions`, { ...asked, headers });
const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: {"));
assert.equal(lines.map((line) => textOf({ data: JSON.parse(line.slice(6)) })).join(""), whole.text);
const left = await other.fetch(`${second}/chat/completions`, {
  ...asked,
  headers,
  body: JSON.stringify({ ...body("long", 100000), stream: true }),
});
const reader = left.body.getReader();
await reader.read();
await reader.cancel();
const state = await (await other.request(`/jobs/${left.headers.get("x-penstock-job-id")}`, {})).json();
assert.equal(state.status, "canceled");

await assert.rejects(read(other.stream({ ...body("x", 1), model: "nobody" })), (error) => {
  assert.ok(error instanceof PenstockError);
  assert.equal(error.status, 404);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(read(other.resume("nosuch")), { status: 404 });
console.log("done");
