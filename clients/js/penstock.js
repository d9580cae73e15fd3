// Streams of Penstock that go on where they broke off, whichever process or connection died. No dependencies; it runs in
// Node 20 and in browsers.

const AWAY = [502, 503, 504];
const ENDS = ["response.completed", "response.incomplete", "response.failed", "message_stop", "error"];

export class PenstockError extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { name: "PenstockError", status, code });
  }
}

export class Penstock {
  /** Several `baseURL`s, each with its /v1, are tried in turn. A broken stream is picked up `retries` times in a row. */
  constructor({ baseURL, apiKey = "none", fetch = globalThis.fetch.bind(globalThis), retries = 12, delayMs = 100 }) {
    const bases = [baseURL].flat().map((base) => base.replace(/\/$/, ""));
    Object.assign(this, { bases, apiKey, ask: fetch, retries, delayMs, turn: 0 });
  }

  /** Ask for a stream and yield its frames: {id, jobId, text, data}, where `data` is the frame's JSON or "[DONE]". */
  async *stream(body, { path = "/chat/completions", headers = {}, signal } = {}) {
    const named = { "content-type": "application/json", "idempotency-key": crypto.randomUUID(), ...headers };
    const init = { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal };
    const response = await this.request(path, { ...init, headers: { ...named, "x-penstock-event-ids": "true" } });
    yield* this.follow(response, response.headers.get("x-penstock-job-id"), undefined, signal);
  }

  /** Go on with a job's stream behind the frame `lastEventId`, or from its beginning. */
  async *resume(jobId, { lastEventId, signal } = {}) {
    yield* this.follow(await this.events(jobId, lastEventId, signal), jobId, lastEventId, signal);
  }

  /** End a job, whoever reads it. */
  async cancel(jobId) {
    return (await this.request(`/jobs/${jobId}/cancel`, { method: "POST" })).json();
  }

  /** A `fetch` for the AI SDK's and openai's clients, by which their streams go on, too. */
  fetch = async (url, init = {}) => {
    const base = this.bases.find((each) => String(url).startsWith(each));
    if (!base || !wantsStream(init)) return this.ask(url, init);
    const { signal } = init;
    const named = { "idempotency-key": crypto.randomUUID(), "x-penstock-event-ids": "true" };
    const headers = { ...named, ...Object.fromEntries(new Headers(init.headers)) };
    const response = await this.request(String(url).slice(base.length), { ...init, headers }, false);
    if (!response.ok) return response;
    const jobId = response.headers.get("x-penstock-job-id");
    const frames = this.follow(response, jobId, undefined, signal);
    const pull = async (into) => {
      const { done, value } = await frames.next();
      return done ? into.close() : into.enqueue(new TextEncoder().encode(`${value.text}\n\n`));
    };
    const cancel = () => Promise.all([frames.return(), this.cancel(jobId)]).then(() => {});
    return new Response(new ReadableStream({ pull, cancel }), { headers: response.headers });
  };

  async *follow(response, jobId, lastEventId, signal) {
    for (let broken = 0; ; response = await this.events(jobId, lastEventId, signal)) {
      try {
        for await (const frame of framesOf(response.body)) {
          [broken, lastEventId] = [0, frame.id ?? lastEventId];
          yield { ...frame, jobId };
          if (frame.data === "[DONE]" || frame.data?.error || ENDS.includes(frame.data?.type)) return;
        }
      } catch (error) {
        if (signal?.aborted) throw error;
      }
      if (++broken > this.retries) throw new PenstockError("the stream broke off too often", 0, "stream_broken");
      await this.pause(broken);
    }
  }

  events(jobId, lastEventId, signal) {
    const headers = lastEventId === undefined ? {} : { "last-event-id": lastEventId };
    return this.request(`/jobs/${jobId}/events`, { headers, signal });
  }

  /** Ask until a server answers; a request may come twice, so a POST that makes a job needs its idempotency key. */
  async request(path, init, mustBeOk = true) {
    const headers = { authorization: `Bearer ${this.apiKey}`, ...init.headers };
    for (let tries = 1; ; tries++) {
      const base = this.bases[this.turn % this.bases.length];
      const answer = await this.ask(base + path, { ...init, headers }).catch((error) => error);
      const away = answer instanceof Error || AWAY.includes(answer.status);
      if (!away || tries > this.retries || init.signal?.aborted) {
        if (answer instanceof Error) throw answer;
        if (answer.ok || !mustBeOk) return answer;
        const { error } = await answer.json().catch(() => ({}));
        throw new PenstockError(error?.message ?? answer.statusText, answer.status, error?.code);
      }
      this.turn++;
      await this.pause(tries);
    }
  }

  pause(tries) {
    return new Promise((done) => setTimeout(done, Math.min(this.delayMs * 2 ** (tries - 1), 5000)));
  }
}

function wantsStream({ method, body }) {
  return method === "POST" && typeof body === "string" && JSON.parse(body).stream === true;
}

/** Yield the whole frames of a body. Half a frame at a break is dropped, since it comes again. */
async function* framesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line && !line.startsWith(":"));
        if (lines.length) yield frameOf(lines);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function frameOf(lines) {
  const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
  const data = field("data");
  return { id: field("id"), text: lines.join("\n"), data: data?.startsWith("{") ? JSON.parse(data) : data };
}
