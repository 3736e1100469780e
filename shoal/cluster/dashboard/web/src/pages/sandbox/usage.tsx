import { bytes, mebibytes, number } from "../../lib/format.ts";
import { get } from "../../lib/api.ts";
import { useResource } from "../../lib/resource.ts";
import type { Sandbox } from "../../lib/types.ts";
import { lazy } from "../../ui/lazy.tsx";
import { Empty, Facts, Failure, Loading } from "../../ui/parts.tsx";

interface UsageOf {
  at: number | null;
  cpu_seconds: number | null;
  memory: number | null;
  disk: number | null;
  network_in: number | null;
  network_out: number | null;
  interval: number;
  series: Record<"at" | "cpu" | "memory" | "disk" | "network_in" | "network_out", number[]>;
}

const EVERY_MS = 10_000;
const Chart = lazy(() => import("../../ui/chart.tsx"));

/** What it uses now, and used in the last hour. */
export function Usage({ sandbox }: { sandbox: Sandbox }) {
  const found = useResource((signal) => get<UsageOf>(`v1/sandboxes/${sandbox.id}/usage`, {}, signal), [sandbox.id], EVERY_MS);
  if (found.error && !found.data) return <Failure problem={found.error} retry={found.reload} />;
  if (!found.data) return <Loading />;
  const { series, ...now } = found.data;
  if (now.at === null) return <Empty title="Nothing is known of its use">It never ran, or its node does not remember it any more.</Empty>;
  const rate = (value: number) => `${bytes(value)}/s`;
  const { at } = series;
  return (
    <>
      <div class="charts">
        <Chart title="CPU" at={at} lines={[{ label: "cores", values: series.cpu }]} shown={number} />
        <Chart title="Memory" at={at} lines={[{ label: "used", values: series.memory }]} shown={mebibytes} />
        <Chart title="Disk" at={at} lines={[{ label: "written", values: series.disk }]} shown={mebibytes} />
        <Chart
          title="Network"
          at={at}
          lines={[
            { label: "in", values: series.network_in },
            { label: "out", values: series.network_out },
          ]}
          shown={rate}
        />
      </div>
      <Facts
        facts={[
          ["CPU in all", `${number(now.cpu_seconds ?? 0)} core seconds`],
          ["Received", bytes(now.network_in ?? 0)],
          ["Sent", bytes(now.network_out ?? 0)],
        ]}
      />
    </>
  );
}
