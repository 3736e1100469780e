// Rollouts in progress: how far the maps of programs are, and the rewards of one over its items.
import { get } from "../lib/api.ts";
import { duration, now, number } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link } from "../lib/router.ts";
import type { Rollout } from "../lib/types.ts";
import { lazy } from "../ui/lazy.tsx";
import { Ago, Badge, Empty, Failure, Heading, Loading, Meter, Since, Table, Text } from "../ui/parts.tsx";

const EVERY_MS = 2000;
const MAP = `shoal.map(rollout, items, name="my rollouts")`;
const TONES: Record<Rollout["state"], string> = { running: "wait", done: "good", stopped: "", failed: "bad", lost: "bad" };
const Chart = lazy(() => import("../ui/chart.tsx"));

/** Those of an environment, without their rewards. */
export function useRollouts(environment: string, every: number) {
  return useResource((signal) => get<{ rollouts: Rollout[] }>("v1/rollouts", { environment }, signal), [environment], every);
}

export function RolloutsPage({ environment }: { environment: string }) {
  const found = useRollouts(environment, EVERY_MS);
  const rollouts = found.data?.rollouts;
  return (
    <>
      <Heading title="Rollouts" note="Each map that takes longer than a second, while it runs and for a day after." />
      {found.error && !rollouts && <Failure problem={found.error} retry={found.reload} />}
      {!rollouts && !found.error && <Loading />}
      {rollouts?.length === 0 && (
        <Empty title="No rollout" command={MAP}>
          A map in a Python program reports itself, and appears here after a second.
        </Empty>
      )}
      {rollouts && rollouts.length > 0 && (
        <Table label="Rollouts" head={["Rollout", "State", "Items", "Failed", "Mean reward", "Began", "Took"]}>
          {rollouts.map((each) => (
            <tr key={each.id}>
              <td class="wide">
                <a data-page href={link("e", environment, "rollouts", each.id)}>
                  {each.name ? <Text most={80}>{each.name}</Text> : <code>{each.id}</code>}
                </a>
                <code class="below">{each.owner}</code>
              </td>
              <td>
                <RolloutBadge rollout={each} />
              </td>
              <td>
                <Items rollout={each} />
              </td>
              <td class="number">{number(each.failed)}</td>
              <td class="number">{reward(each.mean)}</td>
              <td class="number">
                <Ago at={each.started_at} />
              </td>
              <td class="number">
                <Since from={each.started_at} to={each.ended_at} />
              </td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}

export function RolloutPage({ environment, id }: { environment: string; id: string }) {
  const found = useResource((signal) => get<Rollout>(`v1/rollouts/${encodeURIComponent(id)}`, {}, signal), [id], EVERY_MS);
  const rollout = found.data;
  return (
    <>
      <a data-page class="up" href={link("e", environment, "rollouts")}>
        Rollouts
      </a>
      {found.error && <Failure problem={found.error} retry={found.reload} />}
      {!rollout && !found.error && <Loading />}
      {rollout && <Shown rollout={rollout} />}
    </>
  );
}

function Shown({ rollout }: { rollout: Rollout }) {
  const { rewards } = rollout;
  const scored = rewards.counts.reduce((sum, count) => sum + count, 0);
  return (
    <>
      <Heading
        title={
          <>
            {rollout.name ? <Text most={200}>{rollout.name}</Text> : "Rollout"} <RolloutBadge rollout={rollout} />
          </>
        }
        note={
          <>
            <code>{rollout.id}</code> of <code>{rollout.owner}</code>
            <span>
              began <Ago at={rollout.started_at} />
            </span>
          </>
        }
      />
      <div class="figures">
        <Figure title="Done" value={number(rollout.done)} note={rollout.total === null ? "of an unknown number" : `of ${number(rollout.total)}`} />
        <Figure title="Failed" value={number(rollout.failed)} note={rollout.done ? `${number((100 * rollout.failed) / rollout.done)} %` : "none"} />
        <Figure title="Running" value={number(rollout.running)} note="items under way" />
        <Figure title="Mean reward" value={reward(rollout.mean)} note={`of ${number(scored)} scores`} />
        <Figure title="Rate" value={number(rate(rollout))} note="items a second" />
        <Figure title={rollout.ended_at === null ? "Left" : "Took"} value={left(rollout)} note={rollout.ended_at === null ? "at this rate" : "in all"} />
      </div>
      {rewards.items.length > 0 ? (
        <Chart
          title="Reward over items"
          at={rewards.items}
          over="items"
          height={260}
          lines={[
            { label: "mean", values: rewards.mean },
            { label: "lowest", values: rewards.least },
            { label: "highest", values: rewards.most },
          ]}
          shown={reward}
        />
      ) : (
        <Empty title="No reward yet" command="return shoal.reward(sandbox, …).score">
          Where the function returns a number, or a reward, its mean over items is drawn here.
        </Empty>
      )}
    </>
  );
}

function Figure(props: { title: string; value: string; note: string }) {
  return (
    <div class="figure">
      <span class="figure-title">{props.title}</span>
      <span class="figure-value">{props.value}</span>
      <span class="figure-note">{props.note}</span>
    </div>
  );
}

function RolloutBadge({ rollout }: { rollout: Rollout }) {
  const title = rollout.state === "lost" ? "It has not reported for a minute: its program was killed, or cannot reach the cluster." : undefined;
  return (
    <Badge tone={TONES[rollout.state]} title={title}>
      {rollout.state}
    </Badge>
  );
}

function Items({ rollout }: { rollout: Rollout }) {
  if (rollout.total === null) return <span class="meter-text">{number(rollout.done)}</span>;
  return <Meter plain used={rollout.done} total={rollout.total} label={`${number(rollout.done)} of ${number(rollout.total)}`} />;
}

const reward = (value: number | null) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const seconds = (rollout: Rollout) => Math.max(0.001, (rollout.ended_at ?? rollout.reported_at) - rollout.started_at);
const rate = (rollout: Rollout) => rollout.done / seconds(rollout);

function left(rollout: Rollout): string {
  if (rollout.ended_at !== null) return duration(seconds(rollout));
  if (rollout.total === null || !rollout.done) return "–";
  const more = (rollout.total - rollout.done) / rate(rollout) - (now.value - rollout.reported_at);
  return duration(Math.max(0, Math.round(more)));
}
