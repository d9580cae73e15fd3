/** A frame of a stream. `text` is the frame as it came, without comments. */
export interface Frame<Data = any> {
  id?: string;
  jobId: string;
  text: string;
  data: Data | "[DONE]";
}

export interface PenstockOptions {
  /** The URL of the API with its `/v1`; several are tried in turn. */
  baseURL: string | string[];
  apiKey?: string;
  fetch?: typeof globalThis.fetch;
  /** How often in a row a request is asked again, and a broken stream is picked up. */
  retries?: number;
  /** The first pause before that; each is twice as long as the one before, up to 5 s. */
  delayMs?: number;
}

export interface StreamOptions {
  path?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export class PenstockError extends Error {
  status: number;
  code?: string;
  constructor(message: string, status: number, code?: string);
}

export class Penstock {
  constructor(options: PenstockOptions);
  stream(body: Record<string, unknown>, options?: StreamOptions): AsyncGenerator<Frame, void, void>;
  resume(jobId: string, options?: { lastEventId?: string; signal?: AbortSignal }): AsyncGenerator<Frame, void, void>;
  cancel(jobId: string): Promise<Record<string, unknown>>;
  fetch: typeof globalThis.fetch;
}
