import type { ComponentChildren } from "preact";
import { bytes, clock, duration, mebibytes, moment, number, plain, words } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import type { Mount, Sandbox, SandboxEvent } from "../../lib/types.ts";
import { Ago, Banner, Facts, Since, Text } from "../../ui/parts.tsx";

export function Overview({ sandbox, events }: { sandbox: Sandbox; events: SandboxEvent[] }) {
  const { cpu, memory } = sandbox;
  const limit = (seconds: number | null) => (seconds === null ? "none" : duration(seconds));
  return (
    <>
      <End sandbox={sandbox} />
      <div class="columns">
        <section>
          <h2>Timeline</h2>
          <Timeline events={events} created={sandbox.created_at} />
        </section>
        <section>
          <h2>Details</h2>
          <Facts
            facts={[
              ["Image", <Text>{sandbox.image}</Text>],
              ["Command", sandbox.command.length ? <code>{plain(sandbox.command.join(" "), 300)}</code> : "none: it lives until it is ended"],
              ["CPU", `${number(cpu[0])} to ${number(cpu[1])} cores`],
              ["Memory", `${mebibytes(memory[0])} to ${mebibytes(memory[1])}`],
              ["Disk", bytes(sandbox.disk * 1024 * 1024)],
              ...(sandbox.gpu ? ([["GPUs", number(sandbox.gpu)]] as [string, string][]) : []),
              ...sandbox.volumes.map((mount): [string, ComponentChildren] => ["Mounted", <Mounted mount={mount} environment={sandbox.environment} />]),
              ["Network", sandbox.network === "none" ? "none" : "the public internet"],
              ["Isolation", sandbox.runtime === "runsc" ? "gVisor (runsc)" : sandbox.runtime],
              ["Time limit", limit(sandbox.timeout)],
              ["Idle limit", limit(sandbox.idle_timeout)],
              ["Persistent", sandbox.persistent ? `yes, restarts: ${sandbox.restart}` : "no"],
              ["Node", sandbox.node_id ? <code>{sandbox.node_id.slice(0, 16)}</code> : null],
              ["Created", <Ago at={sandbox.created_at} />],
              ["Started", <Ago at={sandbox.started_at} />],
              [
                "Lived",
                sandbox.started_at === null ? null : <Since from={sandbox.started_at} to={sandbox.ended_at ?? sandbox.stopped_at} />,
              ],
            ]}
          />
        </section>
      </div>
    </>
  );
}

function Mounted({ mount, environment }: { mount: Mount; environment: string }) {
  const inside = [mount.kind === "bucket" ? mount.prefix : mount.sub_path].filter(Boolean);
  return (
    <>
      <code>{plain(mount.path, 200)}</code>
      <span class="below">
        {mount.kind === "bucket" ? (
          `bucket ${plain([mount.bucket, ...inside].join("/"), 200)}`
        ) : (
          <>
            <a data-page href={link("e", environment, "volumes", mount.volume!)}>
              {mount.volume}
            </a>
            {plain(["", ...inside].join("/"), 200)}
          </>
        )}
        {mount.read_only && ", read only"}
      </span>
    </>
  );
}

/** Why it waits, stopped or ended: the first thing that one wants to know. */
function End({ sandbox }: { sandbox: Sandbox }) {
  if (sandbox.waiting) return <Banner tone="waits" title="Waits">{sandbox.waiting}</Banner>;
  if (!sandbox.reason) return null;
  const code = sandbox.returncode === null ? "" : `, exit code ${sandbox.returncode}`;
  const tone = sandbox.state === "failed" || sandbox.reason.startsWith("out_of") ? "bad" : "";
  return (
    <Banner tone={tone} title={`${sandbox.state}: ${words(sandbox.reason)}${code}`}>
      {sandbox.message ?? ""}
    </Banner>
  );
}

function Timeline({ events, created }: { events: SandboxEvent[]; created: number }) {
  return (
    <ol class="timeline">
      {events.map((event) => (
        <li key={event.id} class={`state-${event.kind}`}>
          <i aria-hidden="true" />
          <div>
            <strong>{words(plain(event.kind, 60))}</strong> <Told data={event.data} />
          </div>
          <time dateTime={new Date(event.at * 1000).toISOString()} title={moment(event.at)}>
            {clock(event.at)}
            <span class="faint"> +{duration(Math.max(0, event.at - created))}</span>
          </time>
        </li>
      ))}
    </ol>
  );
}

function Told({ data }: { data: Record<string, unknown> }) {
  const text = Object.entries(data)
    .filter(([name, value]) => value !== null && name !== "node_id")
    .map(([name, value]) => (name === "reason" || name === "message" ? words(String(value)) : `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`))
    .join(" · ");
  return text ? <Text most={300}>{text}</Text> : null;
}
