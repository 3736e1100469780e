// Pages about what an environment has beside sandboxes: pools, images, secrets.
import { useState } from "preact/hooks";
import { api, get, may } from "../lib/api.ts";
import { bytes, number, plain } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link } from "../lib/router.ts";
import type { Image, Pool } from "../lib/types.ts";
import { Ago, Badge, Confirmed, Copy, Empty, Failure, FormDialog, Heading, Loading, Table, Text } from "../ui/parts.tsx";
import { Builds } from "./builds.tsx";

const EVERY_MS = 5000;

export function PoolsPage({ environment }: { environment: string }) {
  const found = useResource((signal) => get<{ pools: Pool[] }>("v1/pools", { environment }, signal), [environment], EVERY_MS);
  const [resizing, setResizing] = useState<Pool | null>(null);
  const pools = found.data?.pools;
  return (
    <>
      <Heading title="Pools" note="Sandboxes of a spec that are kept ready." />
      {found.error && !pools && <Failure problem={found.error} retry={found.reload} />}
      {!pools && !found.error && <Loading />}
      {pools?.length === 0 && (
        <Empty title="No pool" command={`shoal pool create python --environment ${environment} --min 4 shoal/base`}>
          A create that asks for the same takes one in about 20 ms.
        </Empty>
      )}
      {pools && pools.length > 0 && (
        <Table label="Pools" head={["Name", "Image", "Ready", "Kept ready", "In use", "Taken", "Missed", "Made", ""]}>
          {pools.map((pool) => (
            <tr key={pool.name}>
              <td>
                <b>{pool.name}</b>
                {pool.use.problem && (
                  <span class="below bad">
                    <Text most={200}>{pool.use.problem}</Text>
                  </span>
                )}
              </td>
              <td class="wide">
                <Text most={80}>{pool.spec.image}</Text>
              </td>
              <td class="number">
                {pool.use.ready}
                {pool.use.making > 0 && <span class="below">{pool.use.making} in the making</span>}
              </td>
              <td class="number">
                {pool.min_ready} to {pool.max_ready}
              </td>
              <td class="number">{number(pool.use.in_use)}</td>
              <td class="number">{number(pool.use.taken)}</td>
              <td class="number">{number(pool.use.missed)}</td>
              <td class="number">
                <Ago at={pool.created_at} />
              </td>
              <td class="row-actions">
                {may("run") && (
                  <>
                    <button type="button" class="quiet" onClick={() => setResizing(pool)}>
                      Resize
                    </button>
                    <Confirmed
                      quiet
                      label="Delete"
                      title={`Delete the pool ${pool.name}?`}
                      explain="What is ready of it ends; sandboxes that were taken from it live on."
                      run={async () => {
                        await api("DELETE", `v1/pools/${pool.name}`, { query: { environment } });
                        found.reload();
                      }}
                    />
                  </>
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {resizing && (
        <Resize
          pool={resizing}
          onClose={() => {
            setResizing(null);
            found.reload();
          }}
        />
      )}
    </>
  );
}

function Resize({ pool, onClose }: { pool: Pool; onClose: () => void }) {
  const [least, setLeast] = useState(String(pool.min_ready));
  const [most, setMost] = useState(String(pool.max_ready));
  const save = () => {
    const body = { environment: pool.environment, min_ready: Number(least), max_ready: Number(most) };
    return api("PUT", `v1/pools/${pool.name}/size`, { body });
  };
  return (
    <FormDialog title={`How many of ${pool.name} are kept ready`} label="Save" run={save} onClose={onClose}>
      <label>
        <span>At least</span>
        <input type="number" min={0} required value={least} onInput={(event) => setLeast(event.currentTarget.value)} />
      </label>
      <label>
        <span>At most</span>
        <input type="number" min={0} required value={most} onInput={(event) => setMost(event.currentTarget.value)} />
      </label>
    </FormDialog>
  );
}

const KINDS: [string, string][] = [
  ["", "All"],
  ["snapshot", "Snapshots"],
  ["build", "Builds"],
  ["checkpoint", "Checkpoints"],
  ["loaded", "Loaded"],
];
const PAGE = 100;

export function ImagesPage({ environment }: { environment: string }) {
  const [kind, setKind] = useState("");
  const [cursors, setCursors] = useState<string[]>([]);
  const asked = { environment, kind, limit: PAGE, cursor: cursors.at(-1) };
  const found = useResource((signal) => get<{ images: Image[]; next_cursor: string | null }>("v1/images", asked, signal), [asked], 15_000);
  const images = found.data?.images;
  return (
    <>
      <Heading title="Images" note="Of the cluster: built, or taken of sandboxes." />
      <div class="filters">
        <div class="choices" role="group" aria-label="Kind">
          {KINDS.map(([value, title]) => (
            <button
              type="button"
              key={value}
              aria-pressed={kind === value}
              onClick={() => {
                setKind(value);
                setCursors([]);
              }}
            >
              {title}
            </button>
          ))}
        </div>
      </div>
      {found.error && !images && <Failure problem={found.error} retry={found.reload} />}
      {!images && !found.error && <Loading />}
      {images?.length === 0 && !found.data!.next_cursor && (
        <Empty title="No image" command={`shoal image snapshot SANDBOX --name agent:v1`}>
          Take one of a sandbox’s files, or build one, and others start from it.
        </Empty>
      )}
      {images && images.length > 0 && (
        <Table label="Images" head={["Image", "Kind", "From", "Size", "In use", "Stored", "Made", "Used", ""]}>
          {images.map((image) => (
            <tr key={image.id}>
              <td>
                {image.name && <Text most={120}>{image.name}</Text>}
                <code class={image.name ? "below" : ""}>{image.id}</code>
              </td>
              <td>{image.kind}</td>
              <td class="wide">
                {image.parent && <Text most={60}>{image.parent}</Text>}
                {image.sandbox_id && (
                  <a data-page class="below" href={link("e", environment, "sandboxes", image.sandbox_id)}>
                    {image.sandbox_id}
                  </a>
                )}
              </td>
              <td class="number">{bytes(image.size)}</td>
              <td class="number">{image.in_use || <span class="faint">–</span>}</td>
              <td>
                {image.stored ? <Badge tone="good">everywhere</Badge> : <Badge>{image.machines.length === 1 ? "one machine" : `${image.machines.length} machines`}</Badge>}
              </td>
              <td class="number">
                <Ago at={image.created_at} />
              </td>
              <td class="number">
                <Ago at={image.used_at} />
              </td>
              <td class="row-actions">
                <Copy text={image.name ?? image.id} />
                {may("run") && (
                  <Confirmed
                    quiet
                    label="Delete"
                    title={`Delete ${plain(image.name ?? image.id, 80)}?`}
                    explain={image.in_use ? "Nobody can use it from now on; it goes once nothing needs it." : "It cannot be had back."}
                    run={async () => {
                      await api("DELETE", `v1/images/${image.id}`, { query: { when_unused: true } });
                      found.reload();
                    }}
                  />
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {found.data && (cursors.length > 0 || found.data.next_cursor) && (
        <div class="pager">
          <button type="button" disabled={!cursors.length} onClick={() => setCursors(cursors.slice(0, -1))}>
            Newer
          </button>
          <button type="button" disabled={!found.data.next_cursor} onClick={() => setCursors([...cursors, found.data!.next_cursor!])}>
            Older
          </button>
        </div>
      )}
      <Builds environment={environment} />
    </>
  );
}

interface Secret {
  name: string;
  environment: string;
  keys: string[];
  version: number;
  bytes: number;
  created_at: number;
  updated_at: number;
}

export function SecretsPage({ environment }: { environment: string }) {
  const found = useResource((signal) => get<{ secrets: Secret[] }>("v1/secrets", { environment }, signal), [environment]);
  const secrets = found.data?.secrets;
  return (
    <>
      <Heading title="Secrets" note="Values that sandboxes get and nobody is told again." />
      {found.error && !secrets && <Failure problem={found.error} retry={found.reload} />}
      {!secrets && !found.error && <Loading />}
      {secrets?.length === 0 && (
        <Empty title="No secret" command={`shoal secret create openai --environment ${environment} OPENAI_API_KEY`}>
          A sandbox gets one by its name.
        </Empty>
      )}
      {secrets && secrets.length > 0 && (
        <Table label="Secrets" head={["Name", "Keys", "Version", "Size", "Changed", ""]}>
          {secrets.map((secret) => (
            <tr key={secret.name}>
              <td>
                <b>{secret.name}</b>
              </td>
              <td class="wide">
                <code class="wrap">{plain(secret.keys.join(", "), 300)}</code>
              </td>
              <td class="number">{secret.version}</td>
              <td class="number">{bytes(secret.bytes)}</td>
              <td class="number">
                <Ago at={secret.updated_at} />
              </td>
              <td class="row-actions">
                {may("admin") && (
                  <Confirmed
                    quiet
                    label="Delete"
                    title={`Delete the secret ${secret.name}?`}
                    explain="Sandboxes that run keep what they have; new ones cannot have it."
                    run={async () => {
                      await api("DELETE", `v1/secrets/${secret.name}`, { query: { environment } });
                      found.reload();
                    }}
                  />
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
