// The volumes of an environment, and one volume with its files.
import { useEffect, useState } from "preact/hooks";
import { api, get, may } from "../lib/api.ts";
import { bytes, number } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link, navigate } from "../lib/router.ts";
import type { Sandbox, Volume } from "../lib/types.ts";
import { FileBrowser } from "../ui/files.tsx";
import { Ago, attempt, Badge, Command, Confirmed, Empty, Failure, FormDialog, Heading, Loading, Meter, notify, Table } from "../ui/parts.tsx";

const EVERY_MS = 5000;
const USE_MS = 20_000;
const GIB = 1 << 30;

type Use = NonNullable<Volume["use"]>;

/** What volumes hold. Asking takes the cluster a moment for each: one after the other, and once for each view. */
function useUses(volumes: Volume[] | undefined): ReadonlyMap<string, Use> {
  const [uses, setUses] = useState<ReadonlyMap<string, Use>>(new Map());
  const ids = volumes?.map((volume) => volume.id).join(" ");
  useEffect(() => {
    const abort = new AbortController();
    const ask = async () => {
      for (const { id, environment } of volumes ?? []) {
        if (uses.has(id)) continue;
        const { use } = await get<Volume>(`v1/volumes/${id}`, { environment, use: true }, abort.signal);
        if (use) setUses((before) => new Map(before).set(id, use));
      }
    };
    ask().catch(() => {}); // the list says what is wrong
    return () => abort.abort();
  }, [ids]);
  return uses;
}

function Held({ used, most, shown }: { used: number | undefined; most: number | null; shown: (value: number) => string }) {
  if (used === undefined) return <span class="faint">{most === null ? "…" : `… of ${shown(most)}`}</span>;
  if (most === null) return <span class="meter-text">{shown(used)}</span>;
  return <Meter used={used} total={most} label={`${shown(used)} of ${shown(most)}`} />;
}

export function VolumesPage({ environment }: { environment: string }) {
  const found = useResource((signal) => get<{ volumes: Volume[] }>("v1/volumes", { environment }, signal), [environment], EVERY_MS);
  const deleted = useResource(
    (signal) => get<{ volumes: Volume[] }>("v1/volumes", { environment, deleted: true }, signal),
    [environment],
    EVERY_MS,
  );
  const [making, setMaking] = useState(false);
  const volumes = found.data?.volumes;
  const gone = deleted.data?.volumes ?? [];
  const uses = useUses(volumes);
  const reload = () => {
    found.reload();
    deleted.reload();
  };
  return (
    <>
      <Heading title="Volumes" note="Directories that outlive sandboxes, and that many share.">
        {may("run") && (
          <button type="button" class="solid" onClick={() => setMaking(true)}>
            New volume
          </button>
        )}
      </Heading>
      {found.error && !volumes && <Failure problem={found.error} retry={found.reload} />}
      {!volumes && !found.error && <Loading />}
      {volumes?.length === 0 && (
        <Empty title="No volume" command={`shoal volume create data --environment ${environment}`}>
          Sandboxes mount one by its name, and its files stay.
        </Empty>
      )}
      {volumes && volumes.length > 0 && (
        <Table label="Volumes" head={["Name", "Holds", "Files", "Made", ""]}>
          {volumes.map((volume) => (
            <tr key={volume.id}>
              <td>
                <a data-page href={link("e", environment, "volumes", volume.name)}>
                  <b>{volume.name}</b>
                </a>{" "}
                {volume.ephemeral && <Badge>ephemeral</Badge>}
                <code class="below">{volume.id}</code>
              </td>
              <td>
                <Held used={uses.get(volume.id)?.bytes} most={volume.size} shown={bytes} />
              </td>
              <td>
                <Held used={uses.get(volume.id)?.files} most={volume.files} shown={number} />
              </td>
              <td class="number">
                <Ago at={volume.created_at} />
              </td>
              <td class="row-actions">{may("run") && <Actions quiet volume={volume} changed={reload} deleted={reload} />}</td>
            </tr>
          ))}
        </Table>
      )}
      {gone.length > 0 && (
        <section>
          <h2>Deleted, and not yet removed</h2>
          <Table label="Deleted volumes" head={["Name", "Deleted", ""]}>
            {gone.map((volume) => (
              <tr key={volume.id}>
                <td>
                  {volume.name}
                  <code class="below">{volume.id}</code>
                </td>
                <td class="number">
                  <Ago at={volume.deleted_at} />
                </td>
                <td class="row-actions">
                  {may("run") && (
                    <button
                      type="button"
                      class="quiet"
                      aria-label={`Restore ${volume.name}`}
                      onClick={() => void attempt(() => api("POST", `v1/volumes/${volume.id}/restore`, { body: { environment } }), `${volume.name} is restored.`).then(reload)}
                    >
                      Restore
                    </button>
                  )}
                </td>
              </tr>
            ))}
          </Table>
        </section>
      )}
      {making && (
        <Form
          title="New volume"
          label="Make"
          volume={null}
          onClose={() => setMaking(false)}
          run={async (body) => {
            const made = await api<Volume>("POST", "v1/volumes", { body: { environment, ...body } });
            notify(`${made.name} is made.`);
            found.reload();
          }}
        />
      )}
    </>
  );
}

export function VolumePage({ environment, name }: { environment: string; name: string }) {
  const found = useResource(
    (signal) => get<Volume>(`v1/volumes/${encodeURIComponent(name)}`, { environment, use: true }, signal),
    [environment, name],
    USE_MS,
  );
  const volume = found.data;
  const list = link("e", environment, "volumes");
  return (
    <>
      <a data-page class="up" href={list}>
        Volumes
      </a>
      {found.error && !volume && <Failure problem={found.error} retry={found.reload} />}
      {!volume && !found.error && <Loading />}
      {volume && (
        <>
          <Heading
            title={
              <>
                {volume.name} {volume.ephemeral && <Badge>ephemeral</Badge>}
              </>
            }
            note={
              <>
                <code>{volume.id}</code>
                <Held used={volume.use?.bytes} most={volume.size} shown={bytes} />
                <Held used={volume.use?.files} most={volume.files} shown={(count) => `${number(count)} ${count === 1 ? "file" : "files"}`} />
              </>
            }
          >
            {may("run") && <Actions volume={volume} changed={found.reload} deleted={() => navigate(list)} />}
          </Heading>
          {may("run") && <VolumeFiles volume={volume} />}
          <section>
            <h2>In a sandbox</h2>
            <Command text={`shoal run --environment ${environment} -v ${volume.name}:/data shoal/base ls /data`} />
          </section>
        </>
      )}
    </>
  );
}

/** Directories are listed through a sandbox of the cluster's own that has the volume; it ends when nobody uses it. */
function VolumeFiles({ volume }: { volume: Volume }) {
  const { id, environment } = volume;
  return (
    <FileBrowser
      at={{
        key: volume.name,
        start: "/",
        file: (path) => `v1/volumes/${id}/files?environment=${encodeURIComponent(environment)}&path=${path}`,
        opened: async () => {
          const sandbox = await api<Sandbox>("POST", `v1/volumes/${id}/open`, { body: { environment } });
          return `v1/sandboxes/${sandbox.id}`;
        },
        inside: (path) => `/volume/${path.replace(/^\/+/, "")}`,
      }}
    />
  );
}

function Actions(props: { volume: Volume; quiet?: boolean; changed: () => void; deleted: () => void }) {
  const { id, name, environment } = props.volume;
  const [limiting, setLimiting] = useState(false);
  return (
    <>
      <button type="button" class={props.quiet ? "quiet" : undefined} onClick={() => setLimiting(true)}>
        Limits
      </button>
      <Confirmed
        quiet={props.quiet}
        label="Delete"
        title={`Delete the volume ${name}?`}
        explain="Nobody finds it any more; sandboxes that have it mounted keep it. It can be restored for a while."
        run={async () => {
          await api("DELETE", `v1/volumes/${id}`, { query: { environment } });
          props.deleted();
        }}
      />
      {limiting && (
        <Form
          title={`What ${name} may hold`}
          label="Save"
          volume={props.volume}
          onClose={() => setLimiting(false)}
          run={async ({ size, files }) => {
            await api("PUT", `v1/volumes/${id}/limits`, { body: { environment, size, files } });
            props.changed();
          }}
        />
      )}
    </>
  );
}

interface Given {
  name?: string;
  size: number | null;
  files: number | null;
}

/** `volume`: the one whose limits are changed; none: a new one. */
function Form(props: { title: string; label: string; volume: Volume | null; onClose: () => void; run: (given: Given) => Promise<void> }) {
  const { volume } = props;
  const [name, setName] = useState("");
  const [size, setSize] = useState(volume?.size ? String(volume.size / GIB) : "");
  const [files, setFiles] = useState(volume?.files ? String(volume.files) : "");
  const run = () => {
    const limits = { size: size ? Number(size) * GIB : null, files: files ? Number(files) : null };
    return props.run(volume ? limits : { name, ...limits });
  };
  return (
    <FormDialog title={props.title} label={props.label} run={run} onClose={props.onClose}>
      {!volume && (
        <label>
          <span>Name</span>
          <input required maxLength={64} value={name} placeholder="data" onInput={(event) => setName(event.currentTarget.value)} />
        </label>
      )}
      <label>
        <span>At most so many GiB</span>
        <input type="number" min={1} value={size} placeholder="no limit" onInput={(event) => setSize(event.currentTarget.value)} />
      </label>
      <label>
        <span>At most so many files</span>
        <input type="number" min={1} value={files} placeholder="no limit" onInput={(event) => setFiles(event.currentTarget.value)} />
      </label>
    </FormDialog>
  );
}
