// Builds of images: those that run and the last that ended, and the log of one as it is written.
import { useEffect, useState } from "preact/hooks";
import { get, Problem } from "../lib/api.ts";
import { useResource } from "../lib/resource.ts";
import { link } from "../lib/router.ts";
import type { Build, BuildLog } from "../lib/types.ts";
import { Ago, Badge, Banner, Failure, Heading, Loading, Since, Table } from "../ui/parts.tsx";
import { LogText } from "../ui/stream.tsx";

const EVERY_MS = 5000;
const WAIT_S = 10;
const RETRY_MS = 1000;
const MOST_CHARACTERS = 400_000;

/** Nothing where there is none: most clusters have builds only now and then. */
export function Builds({ environment }: { environment: string }) {
  const found = useResource((signal) => get<{ builds: Build[] }>("v1/builds", { environment }, signal), [environment], EVERY_MS);
  const builds = found.data?.builds;
  if (!builds?.length) return null;
  return (
    <section>
      <h2>Builds</h2>
      <Table label="Builds" head={["Build", "State", "Steps", "Image", "Began", "Took"]}>
        {builds.map((build) => (
          <tr key={build.id}>
            <td>
              <a data-page href={link("e", environment, "images", "builds", build.id)}>
                <code>{build.id}</code>
              </a>
            </td>
            <td>
              <BuildBadge build={build} />
            </td>
            <td class="number">
              <Steps build={build} />
            </td>
            <td>{build.image ? <code>{build.image}</code> : <span class="faint">–</span>}</td>
            <td class="number">
              <Ago at={build.started_at} />
            </td>
            <td class="number">
              <Since from={build.started_at} to={build.ended_at} />
            </td>
          </tr>
        ))}
      </Table>
    </section>
  );
}

export function BuildPage({ environment, id }: { environment: string; id: string }) {
  const { build, text, cut, problem, again } = useLog(id);
  return (
    <>
      <a data-page class="up" href={link("e", environment, "images")}>
        Images
      </a>
      {problem && <Failure problem={problem} retry={again} />}
      {!build && !problem && <Loading />}
      {build && (
        <>
          <Heading
            title={
              <>
                Build <BuildBadge build={build} />
              </>
            }
            note={
              <>
                <code>{build.id}</code> <Steps build={build} /> <Since from={build.started_at} to={build.ended_at} />
                {build.image && <code>{build.image}</code>}
              </>
            }
          />
          {build.error && (
            <Banner tone="bad" title="It failed">
              {build.error.message}
            </Banner>
          )}
          <LogText text={text} skipped={cut} label="Log of the build" note={build.ended_at === null ? "Follows what is written." : "This is the end of it."} />
        </>
      )}
    </>
  );
}

function Steps({ build }: { build: Build }) {
  return (
    <>
      {build.step} of {build.steps} steps{build.cached > 0 && <span class="faint"> ({build.cached} were there)</span>}
    </>
  );
}

function BuildBadge({ build }: { build: Build }) {
  return <Badge tone={build.state === "done" ? "good" : build.state === "failed" ? "bad" : "waits"}>{build.state}</Badge>;
}

/** The log, followed until the build has ended and all of it was told; after a lost connection it goes on where it was. */
function useLog(id: string) {
  const [build, setBuild] = useState<Build | null>(null);
  const [log, setLog] = useState({ text: "", cut: 0 });
  const [problem, setProblem] = useState<Problem | null>(null);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    const follow = async () => {
      let offset = 0;
      while (!abort.signal.aborted) {
        try {
          const part = await get<BuildLog>(`v1/images/builds/${encodeURIComponent(id)}/log`, { offset, wait: offset ? WAIT_S : 0 }, abort.signal);
          setBuild(part.build);
          if (part.text)
            setLog(({ text, cut }) => {
              const all = text + part.text;
              const over = Math.max(0, all.length - MOST_CHARACTERS);
              return { text: all.slice(over), cut: cut + over };
            });
          if (part.build.ended_at !== null && !part.text && part.offset === offset) return;
          if (!part.text && !offset) await new Promise((done) => setTimeout(done, RETRY_MS));
          offset = part.offset;
        } catch (error) {
          if (abort.signal.aborted) return;
          if (!(error instanceof Problem) || !error.passing) return setProblem(error instanceof Problem ? error : new Problem(0, "defect", String(error)));
          await new Promise((done) => setTimeout(done, RETRY_MS));
        }
      }
    };
    setBuild(null);
    setLog({ text: "", cut: 0 });
    setProblem(null);
    void follow();
    return () => abort.abort();
  }, [id, turn]);
  return { build, ...log, problem, again: () => setTurn(turn + 1) };
}
