import { useState } from "preact/hooks";
import { api, get } from "../../lib/api.ts";
import { useResource } from "../../lib/resource.ts";
import type { Sandbox, Tunnel } from "../../lib/types.ts";
import { attempt, Badge, Confirmed, Copy, Empty, Failure, Loading, Table } from "../../ui/parts.tsx";

const TOKEN_S = 3600;

/** Ways in from outside to the sandbox's ports. */
export function Tunnels({ sandbox }: { sandbox: Sandbox }) {
  const path = `v1/sandboxes/${sandbox.id}/tunnels`;
  const found = useResource((signal) => get<{ tunnels: Tunnel[] }>(path, {}, signal), [sandbox.id]);
  const [port, setPort] = useState("8080");
  const [open, setOpen] = useState(false);
  const expose = async (event: Event) => {
    event.preventDefault();
    await attempt(() => api("POST", path, { body: { port: Number(port), public: open } }), `Port ${port} is open.`);
    found.reload();
  };
  /** A private tunnel's page gets a token that lasts an hour. The new window cannot reach this one. */
  const visit = async (tunnel: Tunnel) => {
    const page = window.open("about:blank", "_blank");
    const done = await attempt(async () => {
      let to = tunnel.url!;
      if (!tunnel.public) {
        const made = await api<Tunnel>("POST", `${path}/${tunnel.port}/token`, { body: { expires_in: TOKEN_S } });
        to += `?shoal_token=${encodeURIComponent(made.token!)}`;
      }
      if (!page) throw new Error("The browser opens no new tab; allow this page to.");
      page.opener = null;
      page.location.replace(to);
    });
    if (!done) page?.close();
  };
  if (found.error && !found.data) return <Failure problem={found.error} retry={found.reload} />;
  if (!found.data) return <Loading />;
  return (
    <>
      <form class="filters" onSubmit={(event) => void expose(event)}>
        <label class="inline">
          Port <input type="number" min={1} max={65535} required value={port} onInput={(event) => setPort(event.currentTarget.value)} />
        </label>
        <label class="inline">
          <input type="checkbox" checked={open} onChange={(event) => setOpen(event.currentTarget.checked)} /> open to everybody
        </label>
        <button type="submit">Open a tunnel</button>
      </form>
      {!found.data.tunnels.length && (
        <Empty title="No tunnel" command={`shoal tunnel ${sandbox.id} 8080`}>
          A tunnel leads from a browser to a server that listens in the sandbox.
        </Empty>
      )}
      {found.data.tunnels.length > 0 && (
        <Table label="Tunnels" head={["Port", "Kind", "Address", ""]}>
          {found.data.tunnels.map((tunnel) => (
            <tr key={tunnel.port}>
              <td class="number">{tunnel.port}</td>
              <td>
                {tunnel.protocol} <Badge tone={tunnel.public ? "wait" : ""}>{tunnel.public ? "public" : "private"}</Badge>
              </td>
              <td class="wide">
                <code>{tunnel.url ?? tunnel.address ?? ""}</code> <Copy text={tunnel.url ?? tunnel.address ?? ""} />
              </td>
              <td class="row-actions">
                {tunnel.url && (
                  <button type="button" class="quiet" onClick={() => void visit(tunnel)}>
                    Visit
                  </button>
                )}
                <Confirmed
                  quiet
                  label="Close"
                  title={`Close the tunnel to port ${tunnel.port}?`}
                  explain="Its links stop working."
                  run={async () => {
                    await api("DELETE", `${path}/${tunnel.port}`);
                    found.reload();
                  }}
                />
              </td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
