// One sandbox: what it is and how it stands, and behind tabs what can be done in it.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, get, may } from "../lib/api.ts";
import { follow } from "../lib/events.ts";
import { useResource } from "../lib/resource.ts";
import { link, navigate } from "../lib/router.ts";
import type { Sandbox, SandboxEvent } from "../lib/types.ts";
import { attempt, Confirmed, Copy, Failure, Heading, Loading, StateBadge, Tags, Text } from "../ui/parts.tsx";
import { lazy } from "../ui/lazy.tsx";
import { Files } from "./sandbox/files.tsx";
import { Output } from "./sandbox/output.tsx";
import { Overview } from "./sandbox/overview.tsx";
import { Processes } from "./sandbox/processes.tsx";
import { Spec } from "./sandbox/spec.tsx";
import { Tunnels } from "./sandbox/tunnels.tsx";
import { Usage } from "./sandbox/usage.tsx";

const Terminal = lazy(() => import("./sandbox/terminal.tsx"));

const ENDED = ["terminated", "failed"];
const MOST_EVENTS = 500;

interface Tab {
  name: string;
  title: string;
  shown: (sandbox: Sandbox) => boolean;
}

/** Whether one may do something inside. */
function inside(sandbox: Sandbox): boolean {
  return may("run") && sandbox.state === "running";
}

const TABS: Tab[] = [
  { name: "", title: "Overview", shown: () => true },
  { name: "output", title: "Output", shown: (sandbox) => sandbox.command.length > 0 },
  { name: "terminal", title: "Terminal", shown: inside },
  { name: "processes", title: "Processes", shown: inside },
  { name: "files", title: "Files", shown: inside },
  { name: "tunnels", title: "Tunnels", shown: (sandbox) => may("run") && !ENDED.includes(sandbox.state) && sandbox.started_at !== null },
  { name: "usage", title: "Usage", shown: (sandbox) => sandbox.started_at !== null },
  { name: "spec", title: "Spec", shown: () => true },
];

export function SandboxPage({ id, tab = "" }: { id: string; tab?: string }) {
  const found = useResource((signal) => get<Sandbox>(`v1/sandboxes/${encodeURIComponent(id)}`, {}, signal), [id]);
  const [events, setEvents] = useState<SandboxEvent[]>([]);
  const sandbox = found.data;
  const known = sandbox !== undefined;

  useEffect(() => {
    if (!known) return;
    const abort = new AbortController();
    setEvents([]);
    const tell = (event: SandboxEvent) => {
      setEvents((before) => [...before.slice(1 - MOST_EVENTS), event]);
      found.reload();
    };
    void follow(`v1/sandboxes/${id}/events`, {}, tell, abort.signal, (event) => ENDED.includes(event.kind));
    return () => abort.abort();
  }, [id, known]);

  const tabs = useMemo(() => (sandbox ? TABS.filter((each) => each.shown(sandbox)) : []), [sandbox]);
  if (!sandbox) return found.error ? <Failure problem={found.error} retry={found.reload} /> : <Loading />;
  const to = (name: string) => link("e", sandbox.environment, "sandboxes", id, ...(name ? [name] : []));
  const shown = tabs.find((each) => each.name === tab) ?? tabs[0]!;

  return (
    <>
      <a data-page class="up" href={link("e", sandbox.environment, "sandboxes")}>
        Sandboxes
      </a>
      <Heading
        title={
          <>
            <Text most={64}>{sandbox.name ?? sandbox.id}</Text> <StateBadge state={sandbox.state} waiting={sandbox.waiting} />
          </>
        }
        note={
          <>
            <code>{sandbox.id}</code> <Copy text={sandbox.id} label="Copy id" /> <Tags tags={sandbox.tags} />
          </>
        }
      >
        {may("run") && <Actions sandbox={sandbox} reload={found.reload} />}
      </Heading>
      <Tabs tabs={tabs} shown={shown} to={to} />
      <div class="tab" role="tabpanel" aria-label={shown.title}>
        {shown.name === "" && <Overview sandbox={sandbox} events={events} />}
        {shown.name === "output" && <Output sandbox={sandbox} />}
        {shown.name === "terminal" && <Terminal sandbox={sandbox} />}
        {shown.name === "processes" && <Processes sandbox={sandbox} />}
        {shown.name === "files" && <Files sandbox={sandbox} />}
        {shown.name === "tunnels" && <Tunnels sandbox={sandbox} />}
        {shown.name === "usage" && <Usage sandbox={sandbox} />}
        {shown.name === "spec" && <Spec sandbox={sandbox} />}
      </div>
    </>
  );
}

/** Arrow keys move between tabs, as in all programs. */
function Tabs({ tabs, shown, to }: { tabs: Tab[]; shown: Tab; to: (name: string) => string }) {
  const press = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(shown) + step + tabs.length) % tabs.length]!;
    navigate(to(next.name), true);
    requestAnimationFrame(() => document.querySelector<HTMLElement>('[role="tab"][aria-selected="true"]')?.focus());
  };
  // On a small screen the row of tabs is longer than the screen.
  const row = useRef<HTMLDivElement>(null);
  useEffect(() => row.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "center" }), [shown.name]);
  return (
    <div ref={row} class="tabs" role="tablist" aria-label="About this sandbox" onKeyDown={press}>
      {tabs.map((each) => (
        <a data-page key={each.name} role="tab" href={to(each.name)} aria-selected={each === shown} tabIndex={each === shown ? 0 : -1}>
          {each.title}
        </a>
      ))}
    </div>
  );
}

function Actions({ sandbox, reload }: { sandbox: Sandbox; reload: () => void }) {
  const path = `v1/sandboxes/${sandbox.id}`;
  const [busy, setBusy] = useState(false);
  const act = async (work: () => Promise<unknown>) => {
    setBusy(true);
    await attempt(work);
    setBusy(false);
    reload();
  };
  if (ENDED.includes(sandbox.state)) return null;
  return (
    <>
      {sandbox.persistent && sandbox.state === "stopped" && (
        <button type="button" disabled={busy} onClick={() => void act(() => api("POST", `${path}/start`, { body: {} }))}>
          Start
        </button>
      )}
      {sandbox.persistent && sandbox.state === "running" && (
        <button type="button" disabled={busy} onClick={() => void act(() => api("POST", `${path}/stop`))}>
          Stop
        </button>
      )}
      <Confirmed
        label="Terminate"
        title="Terminate this sandbox?"
        explain="Its processes are killed and its files are lost."
        run={async () => {
          await api("DELETE", path);
          reload();
        }}
      />
    </>
  );
}
