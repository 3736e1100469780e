// Requests to the API of this origin. The session's cookie goes with them by itself.
import { signal } from "@preact/signals";
import { root } from "./router.ts";
import type { Token } from "./types.ts";

/** An error of the API, as its problem document says it. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly requestId: string | null = null,
    readonly reason: string | null = null,
  ) {
    super(detail);
  }

  /** Whether nothing is wrong but that nobody answers at the moment. */
  get away(): boolean {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }

  /** Whether the same may go well a little later. */
  get passing(): boolean {
    return passing(this.status);
  }
}

export const passing = (status: number) => status === 0 || status === 408 || status === 429 || status >= 500;

/** Who is signed in; null: nobody; undefined: not known yet. */
export const me = signal<Token | null | undefined>(undefined);

/** Why the cluster does not answer, while it does not. */
export const away = signal<string | null>(null);

/** Rises when the cluster answers again: what is shown is then loaded anew. */
export const revision = signal(0);

export type Query = Record<string, string | number | boolean | string[] | null | undefined>;

export function url(path: string, query: Query = {}): string {
  const members = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined || value === "") continue;
    for (const each of Array.isArray(value) ? value : [value]) members.append(name, String(each));
  }
  const text = members.toString();
  return root + path + (text ? `?${text}` : "");
}

interface Options {
  query?: Query;
  body?: unknown;
  raw?: BodyInit;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** The response, if it is a good one; else throws the `Problem`. */
export async function request(method: string, path: string, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { ...options.headers };
  let body = options.raw;
  if (options.body !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(url(path, options.query), { method, headers, body, signal: options.signal, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw noted(new Problem(0, "unreachable", "The API does not answer."));
  }
  if (response.ok) return response;
  throw noted(await problemOf(response));
}

export async function api<T>(method: string, path: string, options: Options = {}): Promise<T> {
  const response = await request(method, path, options);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export const get = <T>(path: string, query?: Query, signal?: AbortSignal) => api<T>("GET", path, { query, signal });

async function problemOf(response: Response): Promise<Problem> {
  try {
    const said = await response.json();
    return new Problem(response.status, String(said.code), String(said.detail), said.request_id ?? null, said.reason ?? null);
  } catch {
    return new Problem(response.status, "unknown", `The API answered with status ${response.status}.`);
  }
}

function noted(problem: Problem): Problem {
  if (problem.status === 401) me.value = null;
  if (problem.away && problem.code !== "no_capacity") void waitUntilBack(problem.message);
  return problem;
}

const LOOK_MS = 1500;
const READY_MS = 5000;
let waiting = false;

async function waitUntilBack(why: string): Promise<void> {
  if (waiting) return;
  waiting = true;
  try {
    if (await ready()) return; // this one request went wrong: whoever sent it tells
    away.value = why;
    do await new Promise((done) => setTimeout(done, LOOK_MS));
    while (!(await ready()));
    away.value = null;
    revision.value += 1;
  } finally {
    waiting = false;
  }
}

const HEARTBEAT_MS = 3000;

/** Has a page that asks for nothing notice, too, that the cluster is away. */
export function watchCluster(): void {
  setInterval(async () => {
    if (document.hidden || waiting || !me.value) return;
    if (!(await ready())) void waitUntilBack("The API does not answer.");
  }, HEARTBEAT_MS);
}

async function ready(): Promise<boolean> {
  try {
    return (await fetch(url("v1/ready"), { cache: "no-store", signal: AbortSignal.timeout(READY_MS) })).ok;
  } catch {
    return false;
  }
}

export async function whoAmI(): Promise<void> {
  try {
    me.value = await get<Token>("v1/tokens/self");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401 || error.status === 403) me.value = null;
  }
}

export async function signIn(by: { token: string } | { code: string }): Promise<void> {
  me.value = await api<Token>("POST", "v1/session", { body: by });
}

export async function signOut(): Promise<void> {
  await api("DELETE", "v1/session");
  me.value = null;
}

const SCOPES = ["read", "run", "admin"];

/** Whether the token may do what needs `scope`; `everywhere`: in all environments. */
export function may(scope: "read" | "run" | "admin", everywhere = false): boolean {
  const token = me.value;
  if (!token) return false;
  return SCOPES.indexOf(token.scope) >= SCOPES.indexOf(scope) && (!everywhere || token.environment === "*");
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
