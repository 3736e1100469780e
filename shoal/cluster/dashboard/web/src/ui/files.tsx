// Files of a sandbox or a volume: browsed, looked at, uploaded, downloaded, removed.
import { useRef, useState } from "preact/hooks";
import { api, request, url } from "../lib/api.ts";
import { bytes, plain } from "../lib/format.ts";
import { asJson, encoded, join, last, parent, shown } from "../lib/paths.ts";
import { useResource } from "../lib/resource.ts";
import { query, setQuery } from "../lib/router.ts";
import type { Entry } from "../lib/types.ts";
import { Ago, attempt, Confirmed, Dialog, Empty, Failure, FormDialog, Loading, notify, Table } from "./parts.tsx";
import { tame } from "./stream.tsx";

const LOOK_BYTES = 256 << 10;
const MOST_SHOWN = 2000;

/** Where the files are. Paths are percent-encoded and begin with a slash. */
export interface FilesAt {
  key: string;
  /** The directory that is shown first. */
  start: string;
  /** The route of a file's bytes. */
  file: (path: string) => string;
  /** The route of a running sandbox that has the files, and where a path is in it. */
  opened: () => Promise<string>;
  inside: (path: string) => string;
}

export function FileBrowser({ at }: { at: FilesAt }) {
  const directory = query.value.get("path") ?? at.start;
  const found = useResource(
    async (signal) => api<{ entries: Entry[] }>("GET", `${await at.opened()}/entries?path=${at.inside(directory)}`, { signal }),
    [at.key, directory],
  );
  const [looking, setLooking] = useState<string | null>(null);
  const [making, setMaking] = useState(false);
  const [busy, setBusy] = useState("");
  const input = useRef<HTMLInputElement>(null);
  const go = (path: string) => setQuery({ path }, false);

  const upload = async (files: Iterable<File>) => {
    for (const file of files) {
      setBusy(`Uploading ${plain(file.name, 80)}…`);
      const to = join(directory, encodeURIComponent(file.name));
      await attempt(() => request("PUT", at.file(to), { raw: file }), `${file.name} is uploaded.`);
    }
    setBusy("");
    found.reload();
  };
  const remove = async (path: string, tree: boolean) => {
    await api("DELETE", at.file(path) + (tree ? "&recursive=true" : ""));
    notify(`${shown(last(path))} is removed.`);
    found.reload();
  };
  const downloadAll = async () => {
    const anchor = document.createElement("a");
    anchor.href = url(`${await at.opened()}/archive?path=${at.inside(directory)}`);
    anchor.download = `${shown(last(directory)) || at.key}.tar`;
    anchor.click();
  };
  const entries = found.data?.entries;

  return (
    <div
      class="files"
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        void upload([...(event.dataTransfer?.files ?? [])]);
      }}
    >
      <div class="bar">
        <Crumbs path={directory} go={go} />
        <div class="actions">
          <span class="faint" role="status">
            {busy}
          </span>
          <button type="button" onClick={() => setMaking(true)}>
            New directory
          </button>
          <button type="button" onClick={() => void attempt(downloadAll)}>
            Download all
          </button>
          <button type="button" class="solid" onClick={() => input.current!.click()}>
            Upload
          </button>
          <input
            ref={input}
            class="unseen"
            type="file"
            multiple
            tabIndex={-1}
            aria-label="Files to upload"
            onChange={(event) => {
              void upload([...(event.currentTarget.files ?? [])]);
              event.currentTarget.value = "";
            }}
          />
        </div>
      </div>
      {found.error && <Failure problem={found.error} retry={found.reload} />}
      {!entries && !found.error && <Loading />}
      {entries?.length === 0 && <Empty title="This directory is empty">Drop files here to upload them.</Empty>}
      {entries && entries.length > 0 && (
        <Table label="Files" head={["Name", "Size", "Mode", "Owner", "Changed", ""]}>
          {entries.slice(0, MOST_SHOWN).map((entry) => {
            const path = join(directory, encoded(entry.name));
            const name = plain(shown(encoded(entry.name)), 255);
            return (
              <tr key={path}>
                <td>
                  {entry.kind === "other" ? (
                    <span>{name}</span>
                  ) : (
                    <button type="button" class="link" onClick={() => (entry.kind === "file" ? setLooking(path) : go(path))}>
                      <Sign kind={entry.kind} />
                      <bdi>
                        {name}
                        {entry.kind === "dir" && "/"}
                      </bdi>
                    </button>
                  )}
                  {entry.target !== null && <span class="faint"> → {plain(shown(encoded(entry.target)), 120)}</span>}
                </td>
                <td class="number">{entry.kind === "file" ? bytes(entry.size) : ""}</td>
                <td>
                  <code>{(entry.mode & 0o7777).toString(8).padStart(3, "0")}</code>
                </td>
                <td class="number">
                  {entry.uid}:{entry.gid}
                </td>
                <td class="number">
                  <Ago at={entry.mtime_ns / 1e9} />
                </td>
                <td class="row-actions">
                  {entry.kind === "file" && (
                    <a href={url(at.file(path))} download={shown(encoded(entry.name))}>
                      Download
                    </a>
                  )}
                  <Confirmed
                    quiet
                    label="Remove"
                    title={`Remove ${name}?`}
                    explain={entry.kind === "dir" ? "All that is in it is removed, too." : "It cannot be had back."}
                    run={() => remove(path, entry.kind === "dir")}
                  />
                </td>
              </tr>
            );
          })}
        </Table>
      )}
      {entries && entries.length > MOST_SHOWN && (
        <p class="faint">
          The first {MOST_SHOWN} of {entries.length} are shown.
        </p>
      )}
      {looking && <Look at={at} path={looking} onClose={() => setLooking(null)} />}
      {making && (
        <NewDirectory
          onClose={() => setMaking(false)}
          make={async (name) => {
            const path = asJson(at.inside(join(directory, encodeURIComponent(name))));
            await api("POST", `${await at.opened()}/mkdir`, { body: { path } });
            found.reload();
          }}
        />
      )}
    </div>
  );
}

function Sign({ kind }: { kind: string }) {
  return <span aria-hidden="true" class={`sign sign-${kind}`} />;
}

function Crumbs({ path, go }: { path: string; go: (path: string) => void }) {
  const parts = path.split("/").filter(Boolean);
  return (
    <nav class="crumbs" aria-label="Directory">
      <button type="button" class="link" onClick={() => go("/")}>
        /
      </button>
      {parts.map((part, index) => (
        <button type="button" class="link" key={index} onClick={() => go(`/${parts.slice(0, index + 1).join("/")}`)}>
          <bdi>{plain(shown(part), 80)}</bdi>/
        </button>
      ))}
      {parts.length > 0 && (
        <button type="button" class="quiet" onClick={() => go(parent(path))}>
          Up
        </button>
      )}
    </nav>
  );
}

function Look({ at, path, onClose }: { at: FilesAt; path: string; onClose: () => void }) {
  const file = useResource(
    async (signal) => {
      const response = await request("GET", at.file(path), { headers: { Range: `bytes=0-${LOOK_BYTES - 1}` }, signal });
      const data = new Uint8Array(await response.arrayBuffer());
      const size = Number(response.headers.get("Content-Range")?.split("/")[1] ?? data.length);
      return { size, binary: data.subarray(0, 8000).includes(0), text: new TextDecoder().decode(data) };
    },
    [path],
  );
  return (
    <Dialog title={plain(shown(last(path)), 120)} onClose={onClose} wide>
      {file.error && file.error.status !== 416 && <Failure problem={file.error} />}
      {file.error?.status === 416 && <p>The file is empty.</p>}
      {file.data && (file.data.binary ? <p>This is no text: {bytes(file.data.size)}.</p> : <pre tabIndex={0} class="look">{tame(file.data.text)}</pre>)}
      {file.data && file.data.size > LOOK_BYTES && <p class="faint">The first {bytes(LOOK_BYTES)} of {bytes(file.data.size)}.</p>}
      <div class="dialog-actions">
        <a class="button" href={url(at.file(path))} download={shown(last(path))}>
          Download
        </a>
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

function NewDirectory({ make, onClose }: { make: (name: string) => Promise<void>; onClose: () => void }) {
  const [name, setName] = useState("");
  return (
    <FormDialog title="New directory" label="Make" run={() => make(name)} onClose={onClose}>
      <label>
        <span>Name</span>
        <input required maxLength={255} value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
    </FormDialog>
  );
}
