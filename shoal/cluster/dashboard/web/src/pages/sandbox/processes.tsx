import { useState } from "preact/hooks";
import { api, get } from "../../lib/api.ts";
import { plain } from "../../lib/format.ts";
import { useResource } from "../../lib/resource.ts";
import type { Process, Sandbox } from "../../lib/types.ts";
import { Ago, attempt, Badge, Empty, Failure, Loading, Table } from "../../ui/parts.tsx";
import { Stream } from "../../ui/stream.tsx";

const EVERY_MS = 4000;

/** The processes that clients started, each with its output as it comes. */
export function Processes({ sandbox }: { sandbox: Sandbox }) {
  const path = `v1/sandboxes/${sandbox.id}/processes`;
  const found = useResource((signal) => get<{ processes: Process[] }>(path, {}, signal), [sandbox.id], EVERY_MS);
  const [open, setOpen] = useState<{ id: string; stream: "stdout" | "stderr" } | null>(null);
  if (found.error && !found.data) return <Failure problem={found.error} retry={found.reload} />;
  if (!found.data) return <Loading />;
  const rows = [...found.data.processes].sort((a, b) => b.started_at - a.started_at);
  if (!rows.length)
    return (
      <Empty title="Nobody has started a process here" command={`shoal exec ${sandbox.id} uname -a`}>
        What you start by “exec” shows here, as long as the sandbox remembers it.
      </Empty>
    );
  const signal = (id: string, name: string) => attempt(() => api("POST", `${path}/${id}/signal`, { body: { signal: name, tree: true } }));
  return (
    <>
      <Table label="Processes" head={["Process", "Command", "State", "Started", ""]}>
        {rows.map((row) => (
          <tr key={row.id} class={open?.id === row.id ? "chosen" : undefined}>
            <td>
              <code>{row.id}</code>
              <span class="below">pid {row.pid}</span>
            </td>
            <td class="wide command-line">
              <code>{plain(row.argv.join(" "), 200)}</code>
            </td>
            <td>
              {row.running ? <Badge tone="good">running</Badge> : <Badge tone={row.returncode ? "bad" : ""}>exit {row.returncode ?? "?"}</Badge>}
            </td>
            <td class="number">
              <Ago at={row.started_at} />
            </td>
            <td class="row-actions">
              {(["stdout", "stderr"] as const).map((stream) => (
                <button
                  type="button"
                  class="quiet"
                  key={stream}
                  aria-pressed={open?.id === row.id && open.stream === stream}
                  onClick={() => setOpen(open?.id === row.id && open.stream === stream ? null : { id: row.id, stream })}
                >
                  {stream}
                </button>
              ))}
              {row.running && (
                <>
                  <button type="button" class="quiet" onClick={() => void signal(row.id, "SIGTERM")}>
                    End
                  </button>
                  <button type="button" class="quiet danger" onClick={() => void signal(row.id, "SIGKILL")}>
                    Kill
                  </button>
                </>
              )}
            </td>
          </tr>
        ))}
      </Table>
      {open && (
        <Stream
          key={`${open.id} ${open.stream}`}
          path={`${path}/${open.id}/output`}
          query={{ stream: open.stream, follow: true, peek: true }}
          label={`${open.stream} of ${open.id}`}
        />
      )}
    </>
  );
}
