// The spec as code: what creates another sandbox like this one.
import { useState } from "preact/hooks";
import { root } from "../../lib/router.ts";
import type { Mount, Sandbox } from "../../lib/types.ts";
import { useResource } from "../../lib/resource.ts";
import { get } from "../../lib/api.ts";
import { Copy } from "../../ui/parts.tsx";

type Value = string | number | boolean | null | Value[] | { [key: string]: Value };

const TOLD_ONLY = new Set([
  ...["id", "state", "created_at", "started_at", "ended_at", "stopped_at"],
  ...["waiting", "reason", "returncode", "message", "node_id", "memory_state", "not_kept", "mounts_still"],
]);

/** The options that differ from the cluster's defaults. */
function options(sandbox: Sandbox, defaults: Record<string, Value>): [string, Value][] {
  const usual: Record<string, Value> = {
    ...{ name: null, tags: {}, command: [], workdir: null, user: "", hostname: "sandbox", idle_timeout: null, persistent: false },
    ...{ restart: "no", autostart: true, owner_lease: null, pty: false, region: [], zone: null, placement: "pack", gpu: 0 },
    ...{ wait_for_capacity: true, runtime: "runc", environment: "main", network: "default", volumes: [], secrets: [], mounted_images: {} },
    ...defaults,
    cpu: [defaults.cpu_request ?? 0, defaults.cpu_limit ?? 0],
    memory: [defaults.memory_request ?? 0, defaults.memory_limit ?? 0],
  };
  const all = Object.entries(sandbox as unknown as Record<string, Value>);
  return all
    .filter(([name, value]) => !TOLD_ONLY.has(name) && (name === "image" || JSON.stringify(value) !== JSON.stringify(usual[name] ?? null)))
    .map(([name, value]) => [name, name === "volumes" ? (value as { [key: string]: Value }[]).map(shorter) : value]);
}

/** A mount without what is usual. */
function shorter(mount: { [key: string]: Value }): Value {
  return Object.fromEntries(Object.entries(mount).filter(([name, value]) => value !== "" && value !== false && !(name === "kind" && value === "volume")));
}

function python(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, each]) => `${json(key)}: ${python(each)}`).join(", ")}}`;
  return json(value);
}

/** JSON whose unseen and reordering characters are escaped. */
function json(value: Value, indent?: number): string {
  return JSON.stringify(value, null, indent).replace(/[\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const quoted = (text: string) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function asPython(given: [string, Value][]): string {
  const command = (given.find(([name]) => name === "command")?.[1] ?? []) as string[];
  const lines = [...command.map(python), ...given.filter(([name]) => name !== "command").map(([name, value]) => `${name}=${python(value)}`)];
  return `import shoal\n\nsandbox = shoal.Sandbox.create(\n${lines.map((line) => `    ${line},\n`).join("")})`;
}

function asCli(given: [string, Value][]): string {
  const known = Object.fromEntries(given);
  const words = ["shoal", "run", "--detach"];
  for (const [name, value] of given) {
    const option = `--${name.replaceAll("_", "-")}`;
    if (name === "image" || name === "command") continue;
    if (name === "tags") for (const [key, each] of Object.entries(value as Record<string, string>)) words.push("--tag", quoted(`${key}=${each}`));
    else if (name === "cpu" || name === "memory") words.push(option, (value as number[]).join(":"));
    else if (name === "region") for (const each of [value as string | string[]].flat()) words.push(option, quoted(each));
    else if (name === "volumes") for (const each of value as unknown as Mount[]) words.push(...asOption(each));
    else if (name === "secrets")
      for (const each of value as { name?: string; directory?: string }[]) each.name && words.push("--secret", quoted([each.name, each.directory].filter(Boolean).join(":")));
    else if (typeof value === "boolean") words.push(value ? option : `--no-${option.slice(2)}`);
    else if (value !== null) words.push(option, quoted(String(value)));
  }
  return [...words, quoted(String(known.image)), ...((known.command ?? []) as string[]).map(quoted)].join(" ");
}

/** A bucket has no option. */
function asOption({ kind, volume, sub_path, path, read_only }: Mount): string[] {
  if (kind === "bucket") return [];
  return ["--volume", quoted(`${[volume, sub_path].filter(Boolean).join("/")}:${path}${read_only ? ":ro" : ""}`)];
}

function asCurl(given: [string, Value][]): string {
  const body = json(Object.fromEntries(given), 2);
  return `curl ${quoted(`${location.origin}${root}v1/sandboxes`)} \\\n  -H "Authorization: Bearer $SHOAL_TOKEN" \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(body)}`;
}

const FORMS = { Python: asPython, "Command line": asCli, curl: asCurl };

export function Spec({ sandbox }: { sandbox: Sandbox }) {
  const [form, setForm] = useState<keyof typeof FORMS>("Python");
  const defaults = useResource((signal) => get<Record<string, Value>>("v1/defaults", {}, signal), []);
  if (!defaults.data) return null;
  const text = FORMS[form](options(sandbox, defaults.data));
  return (
    <>
      <div class="choices" role="group" aria-label="As">
        {(Object.keys(FORMS) as (keyof typeof FORMS)[]).map((each) => (
          <button type="button" key={each} aria-pressed={each === form} onClick={() => setForm(each)}>
            {each}
          </button>
        ))}
      </div>
      <div class="command tall">
        <pre tabIndex={0}>{text}</pre>
        <Copy text={text} />
      </div>
      <p class="faint">Creates another like it, with what differs from this cluster’s defaults. Environment variables are not told again.</p>
    </>
  );
}
