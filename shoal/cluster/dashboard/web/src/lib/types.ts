// The API's answers, as far as the dashboard shows them. `/docs` has the whole.

export type State = "pending" | "starting" | "running" | "paused" | "stopping" | "stopped" | "terminated" | "failed";

export interface Token {
  id: string;
  name: string;
  environment: string;
  scope: "read" | "run" | "admin";
  created_at: number;
  expires_at: number | null;
  revoked_at: number | null;
  last_used_at: number | null;
  created_by: string | null;
}

export interface Sandbox {
  id: string;
  state: State;
  name: string | null;
  image: string;
  environment: string;
  tags: Record<string, string>;
  cpu: [number, number];
  memory: [number, number];
  disk: number;
  pids: number;
  gpu: number;
  command: string[];
  workdir: string | null;
  user: string;
  hostname: string;
  timeout: number | null;
  idle_timeout: number | null;
  persistent: boolean;
  restart: string;
  autostart: boolean;
  owner_lease: number | null;
  pty: boolean;
  network: string;
  region: string[] | string | null;
  zone: string | null;
  placement: string;
  wait_for_capacity: boolean;
  volumes: Mount[];
  runtime: string;
  created_at: number;
  started_at: number | null;
  ended_at: number | null;
  stopped_at: number | null;
  waiting: string | null;
  reason: string | null;
  returncode: number | null;
  message: string | null;
  node_id: string | null;
}

export interface Build {
  id: string;
  environment: string;
  state: "files" | "running" | "done" | "failed";
  steps: number;
  step: number;
  cached: number;
  image: string | null;
  error: { message: string } | null;
  started_at: number;
  ended_at: number | null;
}

/** Rewards over items, as columns. */
export interface Rewards {
  items: number[];
  counts: number[];
  mean: number[];
  least: number[];
  most: number[];
}

export interface Rollout {
  id: string;
  environment: string;
  name: string | null;
  owner: string;
  state: "running" | "done" | "stopped" | "failed" | "lost";
  total: number | null;
  done: number;
  failed: number;
  running: number;
  mean: number | null;
  started_at: number;
  reported_at: number;
  ended_at: number | null;
  rewards: Rewards;
}

export interface BuildLog {
  text: string;
  offset: number;
  build: Build;
}

/** What is mounted of a volume, or of a bucket of a user's own. */
export interface Mount {
  path: string;
  read_only: boolean;
  kind: "volume" | "bucket";
  volume?: string;
  sub_path?: string;
  bucket?: string;
  prefix?: string;
}

export interface SandboxPage {
  sandboxes: Sandbox[];
  next_cursor: string | null;
}

export interface SandboxEvent {
  id: number;
  at: number;
  environment: string;
  sandbox_id: string;
  kind: string;
  data: Record<string, unknown>;
}

export interface Environment {
  name: string;
  quota: Quota;
  usage: Quota;
  created_at: number;
}

export interface Quota {
  sandboxes: number | null;
  cpu: number | null;
  memory: number | null;
  creates_per_minute: number | null;
  volume_bytes: number | null;
  volume_files: number | null;
}

export interface Process {
  id: string;
  pid: number;
  argv: string[];
  started_at: number;
  running: boolean;
  returncode: number | null;
}

export interface Entry {
  name: string | { b64: string };
  path: string | { b64: string };
  kind: "file" | "dir" | "link" | "other";
  size: number;
  mode: number;
  uid: number;
  gid: number;
  mtime_ns: number;
  target: string | { b64: string } | null;
}

export interface Tunnel {
  sandbox_id: string;
  port: number;
  protocol: "http" | "tcp";
  public: boolean;
  url: string | null;
  address: string | null;
  token: string | null;
  expires_at: number | null;
}

export interface NodeInfo {
  id: string;
  address: string;
  hostname: string;
  region: string | null;
  zone: string | null;
  engine: string;
  runtimes: string[];
  alive: boolean;
  sandboxes: number;
  stopped: number;
  warm: number;
  cpu_total: number;
  cpu_free: number;
  memory_total: number;
  memory_free: number;
  disk_total: number;
  gpus: number;
  gpus_free: number;
  remains: number;
  machine: string;
  cordon: { why: string; by: string; at: number; left: boolean } | null;
}

export interface Pool {
  name: string;
  environment: string;
  min_ready: number;
  max_ready: number;
  created_at: number;
  spec: Sandbox;
  use: { ready: number; making: number; in_use: number; taken: number; missed: number; problem: string | null };
}

export interface Image {
  id: string;
  environment: string;
  kind: string;
  created_at: number;
  state: string;
  digest: string;
  name: string | null;
  parent: string | null;
  size: number;
  config: Record<string, unknown>;
  expires_at: number | null;
  machines: string[];
  used_at: number | null;
  sandbox_id: string | null;
  in_use: number;
  stored: boolean;
}

export interface Volume {
  id: string;
  name: string;
  environment: string;
  created_at: number;
  size: number | null;
  files: number | null;
  ephemeral: boolean;
  deleted_at: number | null;
  ready: boolean;
  use: { bytes: number; files: number } | null;
}

export interface AuditEntry {
  id: number;
  at: number;
  action: string;
  outcome: string;
  token: string;
  environment: string;
  target: string | null;
  request_id: string | null;
  address: string | null;
}
