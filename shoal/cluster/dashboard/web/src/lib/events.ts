// Events as they happen: server-sent events over `fetch`, resumed where a lost connection broke off.
import { useEffect, useRef } from "preact/hooks";
import { Problem, request } from "./api.ts";
import type { Query } from "./api.ts";
import type { SandboxEvent } from "./types.ts";

const PAUSE_MS = 1000;
const LONGEST_LINE = 1 << 20;

/** Calls `tell` for each event of a stream until `signal` is aborted, or the stream says that it is over. */
export async function follow(
  path: string,
  query: Query,
  tell: (event: SandboxEvent) => void,
  signal: AbortSignal,
  ends: (event: SandboxEvent) => boolean = () => false,
): Promise<void> {
  let last = "";
  while (!signal.aborted) {
    try {
      const headers: Record<string, string> = last ? { "Last-Event-ID": last } : {};
      const response = await request("GET", path, { query, headers, signal });
      for await (const line of lines(response)) {
        if (line.startsWith("id: ")) last = line.slice(4);
        else if (line.startsWith("data: ")) {
          const event = JSON.parse(line.slice(6)) as SandboxEvent;
          tell(event);
          if (ends(event)) return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.passing) return;
    }
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
}

async function* lines(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop()!.slice(0, LONGEST_LINE);
    yield* parts;
  }
}

/** Follows the events of an environment while the view is there. */
export function useEvents(environment: string, tell: (event: SandboxEvent) => void): void {
  const latest = useRef(tell);
  latest.current = tell;
  useEffect(() => {
    const abort = new AbortController();
    void follow("v1/events", { environment }, (event) => latest.current(event), abort.signal);
    return () => abort.abort();
  }, [environment]);
}
