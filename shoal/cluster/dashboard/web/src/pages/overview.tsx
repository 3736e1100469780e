// The cluster, or one environment, at a glance: figures of now, and charts of the last hour that move by themselves.
import { useRef } from "preact/hooks";
import { get, me } from "../lib/api.ts";
import { duration, mebibytes, number, words } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link } from "../lib/router.ts";
import { lazy } from "../ui/lazy.tsx";
import { Badge, Empty, Failure, Heading, Loading, Meter, Table, Text } from "../ui/parts.tsx";

type Numbers = (number | null)[];

interface Latency {
  count: number;
  p50: number | null;
  p95: number | null;
}

interface NodeFigures {
  id: string;
  hostname: string;
  region: string | null;
  alive: boolean;
  cordoned: string | null;
  sandboxes: number;
  cpu_total: number;
  cpu_used: number;
  memory_total: number;
  memory_used: number;
  disk_total: number;
  disk_used: number;
}

interface Series {
  at: number[];
  states: Record<string, number[]>;
  creates_per_minute: number[];
  ends_per_minute: number[];
  create_p50: Numbers;
  create_p95: Numbers;
  exec_p50: Numbers | null;
  exec_p95: Numbers | null;
  cpu_used: Numbers | null;
  memory_used: Numbers | null;
  disk_used: Numbers | null;
  nodes: Record<string, number[]> | null;
}

interface OverviewOf {
  states: Record<string, number>;
  creates_per_minute: number;
  ends_per_minute: number;
  ends: Record<string, number>;
  create: Latency;
  exec: Latency | null;
  waiting: { why: string; count: number; oldest_s: number }[];
  regions: { region: string | null; launching: number; running: number; draining: number }[] | null;
  nodes: NodeFigures[] | null;
  series: Series;
}

const EVERY_MS = 5000;
const Chart = lazy(() => import("../ui/chart.tsx"));
const CHARTED = ["running", "pending", "starting", "stopped"];

const milliseconds = (seconds: number) => (seconds < 1 ? `${number(Math.round(seconds * 10_000) / 10)} ms` : `${number(seconds)} s`);
const latency = (value: number | null) => (value === null ? "–" : milliseconds(value));

export function OverviewPage({ environment }: { environment: string }) {
  // Only points that are new are asked for, and charts are drawn anew only where there are some.
  const kept = useRef<Series | null>(null);
  const found = useResource(
    async (signal) => {
      const said = await get<OverviewOf>("v1/overview", { environment, since: kept.current?.at.at(-1) }, signal);
      kept.current = joined(kept.current, said.series);
      return said;
    },
    [environment],
    EVERY_MS,
  );
  const data = found.data;
  if (!data) return found.error ? <Failure problem={found.error} retry={found.reload} /> : <Loading />;
  const series = kept.current!;
  const living = Object.values(data.states).reduce((sum, count) => sum + count, 0);
  const waiting = data.waiting.reduce((sum, each) => sum + each.count, 0);
  const ends = Object.entries(data.ends).sort(([, a], [, b]) => b - a);
  return (
    <>
      <Heading title="Overview" note={`${me.value!.environment === "*" ? `The environment ${environment}, and the whole cluster’s nodes.` : `The environment ${environment}.`} Charts show the last hour.`} />
      <div class="figures">
        <Figure title="Living" value={number(living)} note={Object.entries(data.states).filter(([, count]) => count).map(([state, count]) => `${count} ${state}`).join(", ")} href={link("e", environment, "sandboxes")} />
        <Figure title="Waiting" value={number(waiting)} tone={waiting ? "wait" : ""} note={data.waiting[0] ? `oldest ${duration(Math.max(...data.waiting.map((each) => each.oldest_s)))}` : "none"} href={`${link("e", environment, "sandboxes")}?state=pending`} />
        <Figure title="Creates" value={number(data.creates_per_minute)} note="a minute" />
        <Figure title="Ends" value={number(data.ends_per_minute)} note="a minute" />
        <Figure title="Create" value={latency(data.create.p50)} note={`p95 ${latency(data.create.p95)}`} />
        {data.exec && <Figure title="Exec" value={latency(data.exec.p50)} note={`p95 ${latency(data.exec.p95)}`} />}
      </div>
      {data.waiting.length > 0 && (
        <section>
          <h2>Why sandboxes wait</h2>
          <Table label="Why sandboxes wait" head={["Reason", "Sandboxes", "Oldest"]}>
            {data.waiting.map((each) => (
              <tr key={each.why}>
                <td>
                  <Text>{each.why}</Text>
                </td>
                <td class="number">{each.count}</td>
                <td class="number">{duration(each.oldest_s)}</td>
              </tr>
            ))}
          </Table>
        </section>
      )}
      <div class="charts">
        <Chart title="Sandboxes" at={series.at} lines={CHARTED.filter((state) => series.states[state]).map((state) => ({ label: state, values: series.states[state]! }))} shown={number} />
        <Chart
          title="A minute"
          at={series.at}
          lines={[
            { label: "creates", values: series.creates_per_minute },
            { label: "ends", values: series.ends_per_minute },
          ]}
          shown={number}
        />
        <Chart
          title="Create"
          at={series.at}
          lines={[
            { label: "p50", values: series.create_p50 },
            { label: "p95", values: series.create_p95 },
          ]}
          shown={milliseconds}
        />
        {series.exec_p50 && series.exec_p95 && (
          <Chart
            title="Exec over HTTP"
            at={series.at}
            lines={[
              { label: "p50", values: series.exec_p50 },
              { label: "p95", values: series.exec_p95 },
            ]}
            shown={milliseconds}
          />
        )}
        {series.cpu_used && <Chart title="CPU of all nodes" at={series.at} lines={[{ label: "cores", values: series.cpu_used }]} shown={number} />}
        {series.memory_used && <Chart title="Memory of all nodes" at={series.at} lines={[{ label: "used", values: series.memory_used }]} shown={mebibytes} />}
        {series.disk_used && <Chart title="Disk of all nodes" at={series.at} lines={[{ label: "used", values: series.disk_used }]} shown={mebibytes} />}
        {series.nodes && <Chart title="Nodes" at={series.at} lines={Object.entries(series.nodes).map(([label, values]) => ({ label, values }))} shown={number} />}
      </div>
      <div class="columns">
        <section>
          <h2>How they ended in the last hour</h2>
          {ends.length ? (
            <Table label="Ends" head={["Reason", "Sandboxes"]}>
              {ends.map(([reason, count]) => (
                <tr key={reason}>
                  <td>{words(reason)}</td>
                  <td class="number">{number(count)}</td>
                </tr>
              ))}
            </Table>
          ) : (
            <p class="faint">None ended.</p>
          )}
        </section>
        {data.regions && (
          <section>
            <h2>Nodes by region</h2>
            <Table label="Regions" head={["Region", "Running", "Launching", "Draining"]}>
              {data.regions.map((each) => (
                <tr key={each.region ?? ""}>
                  <td>{each.region ?? <span class="faint">none</span>}</td>
                  <td class="number">{each.running}</td>
                  <td class="number">{each.launching}</td>
                  <td class="number">{each.draining}</td>
                </tr>
              ))}
            </Table>
          </section>
        )}
      </div>
      {data.nodes && (
        <section>
          <h2>Load of the nodes</h2>
          {data.nodes.length ? <Loads nodes={data.nodes} /> : <Empty title="No node" command="shoal join" />}
        </section>
      )}
    </>
  );
}

const MOST_POINTS = 360;

/** A series with the points that came since. */
function joined(before: Series | null, more: Series): Series {
  if (!before?.at.length) return more;
  if (!more.at.length) return before;
  const list = <T,>(old: T[] | null, its: T[] | null): T[] | null => (old && its ? [...old, ...its].slice(-MOST_POINTS) : null);
  const map = (old: Record<string, number[]> | null, its: Record<string, number[]> | null) =>
    old && its ? Object.fromEntries(Object.keys(its).map((name) => [name, list(old[name] ?? [], its[name]!)!])) : null;
  return {
    at: list(before.at, more.at)!,
    states: map(before.states, more.states)!,
    creates_per_minute: list(before.creates_per_minute, more.creates_per_minute)!,
    ends_per_minute: list(before.ends_per_minute, more.ends_per_minute)!,
    create_p50: list(before.create_p50, more.create_p50)!,
    create_p95: list(before.create_p95, more.create_p95)!,
    exec_p50: list(before.exec_p50, more.exec_p50),
    exec_p95: list(before.exec_p95, more.exec_p95),
    cpu_used: list(before.cpu_used, more.cpu_used),
    memory_used: list(before.memory_used, more.memory_used),
    disk_used: list(before.disk_used, more.disk_used),
    nodes: map(before.nodes, more.nodes),
  };
}

function Figure(props: { title: string; value: string; note: string; tone?: string; href?: string }) {
  const inner = (
    <>
      <span class="figure-title">{props.title}</span>
      <span class={`figure-value ${props.tone ?? ""}`}>{props.value}</span>
      <span class="figure-note">{props.note}</span>
    </>
  );
  return props.href ? (
    <a data-page class="figure" href={props.href}>
      {inner}
    </a>
  ) : (
    <div class="figure">{inner}</div>
  );
}

function Loads({ nodes }: { nodes: NodeFigures[] }) {
  return (
    <Table label="Load of the nodes" head={["Node", "Region", "Sandboxes", "CPU", "Memory", "Disk"]}>
      {nodes.map((node) => (
        <tr key={node.id}>
          <td>
            <Text most={80}>{node.hostname}</Text> {!node.alive && <Badge tone="bad">away</Badge>}
            {node.cordoned && <Badge tone="wait">cordoned</Badge>}
          </td>
          <td>{node.region ?? <span class="faint">–</span>}</td>
          <td class="number">{node.sandboxes}</td>
          <td>
            <Meter used={node.cpu_used} total={node.cpu_total} label={`${number(node.cpu_used)} of ${number(node.cpu_total)}`} />
          </td>
          <td>
            <Meter used={node.memory_used} total={node.memory_total} label={`${mebibytes(node.memory_used)} of ${mebibytes(node.memory_total)}`} />
          </td>
          <td>
            <Meter used={node.disk_used} total={node.disk_total} label={`${mebibytes(node.disk_used)} of ${mebibytes(node.disk_total)}`} />
          </td>
        </tr>
      ))}
    </Table>
  );
}

