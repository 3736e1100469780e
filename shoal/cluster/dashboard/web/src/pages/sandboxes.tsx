// The table of an environment's sandboxes: paged, searched, filtered and sorted at the server, kept live by events.
import { useEffect, useRef, useState } from "preact/hooks";
import { api, get, may, messageOf } from "../lib/api.ts";
import { useEvents } from "../lib/events.ts";
import { mebibytes, number, plain, words } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link, navigate, query, setQuery } from "../lib/router.ts";
import type { Sandbox, SandboxEvent, SandboxPage, State } from "../lib/types.ts";
import { Ago, Confirmed, Empty, Failure, Heading, Loading, notify, Since, StateBadge, Table, Tags, Text } from "../ui/parts.tsx";

const PAGE = 100;
const REFRESH_MS = 2000;
const AT_ONCE = 8;
const LIVING = ["pending", "starting", "running", "paused", "stopping", "stopped"];
const ENDED = ["terminated", "failed"];

const NEWEST = "-created";

/** Which page by its cursor, and those before it, so that one can go back. */
function useCursors(key: string) {
  const [cursors, setCursors] = useState<string[]>([]);
  const shown = useRef(key);
  if (shown.current !== key) {
    shown.current = key;
    if (cursors.length) setCursors([]);
  }
  return {
    cursor: cursors.at(-1) ?? null,
    number: cursors.length + 1,
    next: (cursor: string) => setCursors([...cursors, cursor]),
    back: () => setCursors(cursors.slice(0, -1)),
  };
}

export function SandboxesPage({ environment }: { environment: string }) {
  const asked = query.value;
  const filters = {
    search: asked.get("search") ?? "",
    state: asked.get("state") ?? "",
    tag: asked.get("tag") ?? "",
    image: asked.get("image") ?? "",
    region: asked.get("region") ?? "",
  };
  const sort = asked.get("sort") || NEWEST;
  const pages = useCursors(JSON.stringify([environment, filters, sort]));
  const listing = {
    environment,
    search: filters.search,
    image: filters.image,
    region: filters.region,
    tag: filters.tag ? [filters.tag] : [],
    state: filters.state === "ended" ? ENDED : filters.state && filters.state !== "all" ? [filters.state] : [],
    include_ended: filters.state === "all",
    sort: sort === NEWEST ? null : sort,
    limit: PAGE,
    cursor: pages.cursor,
  };
  const page = useResource((signal) => get<SandboxPage>("v1/sandboxes", listing, signal), [listing]);
  const rows = page.data?.sandboxes;

  // What an event says is shown at once; what it may have moved into or out of the page, a little later.
  const dirty = useRef(false);
  const loading = useRef(false);
  loading.current = page.loading;
  useEvents(environment, (event) => {
    dirty.current = true;
    page.change((data) => changed(data, event));
  });
  useEffect(() => {
    const timer = setInterval(() => {
      if (!dirty.current || loading.current || document.hidden) return;
      dirty.current = false;
      page.reload();
    }, REFRESH_MS);
    return () => clearInterval(timer);
  }, [page.reload]);

  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  useEffect(() => setChosen(new Set()), [environment, pages.cursor]);
  const present = (rows ?? []).filter((row) => chosen.has(row.id) && !ENDED.includes(row.state));
  const mayEnd = may("run");

  const choose = (ids: string[], on: boolean) => {
    const next = new Set(chosen);
    for (const id of ids) on ? next.add(id) : next.delete(id);
    setChosen(next);
  };
  const head = (by: string, title: string) => {
    const here = sort === by ? " ↑" : sort === `-${by}` ? " ↓" : "";
    const next = sort === by || (by === "created" && !here) ? `-${by}` : by;
    return (
      <button type="button" class="sort" aria-label={`Sort by ${title.toLowerCase()}`} onClick={() => setQuery({ sort: next === NEWEST ? null : next })}>
        {title}
        <span aria-hidden="true">{here}</span>
      </button>
    );
  };
  const filtered = Object.values(filters).some(Boolean);
  const living = (rows ?? []).filter((row) => !ENDED.includes(row.state)).map((row) => row.id);

  return (
    <>
      <Heading title="Sandboxes" note={rows && summary(rows, page.data!.next_cursor !== null || pages.number > 1)}>
        {mayEnd && present.length > 0 && (
          <Confirmed
            label={`Terminate ${present.length}`}
            title={`Terminate ${present.length} sandbox${present.length === 1 ? "" : "es"}?`}
            explain="Their processes are killed and their files are lost."
            run={async () => {
              await terminateAll(present.map((row) => row.id));
              setChosen(new Set());
              page.reload();
            }}
          />
        )}
      </Heading>
      <Filters filters={filters} />
      {page.error && !page.data && <Failure problem={page.error} retry={page.reload} />}
      {!page.data && !page.error && <Loading />}
      {rows && !rows.length && page.data!.next_cursor === null && (
        filtered ? (
          <Empty title="Nothing matches">
            <a data-page href={link("e", environment, "sandboxes")}>
              Show all that live
            </a>
          </Empty>
        ) : (
          <Empty title="No sandbox lives here" command={`shoal run --detach --name web --environment ${environment} shoal/base sleep 3600`}>
            Create one, and it appears here at once.
          </Empty>
        )
      )}
      {rows && rows.length > 0 && (
        <Table
          label="Sandboxes"
          class="rows"
          head={[
            ...(mayEnd
              ? [
                  <input
                    type="checkbox"
                    aria-label="Choose all on this page"
                    checked={living.length > 0 && present.length === living.length}
                    onChange={(event) => choose(living, event.currentTarget.checked)}
                  />,
                ]
              : []),
            head("state", "State"),
            head("name", "Name"),
            head("image", "Image"),
            "Tags",
            head("cpu", "CPU"),
            head("memory", "Memory"),
            head("region", "Region"),
            head("created", "Created"),
            "Lived",
          ]}
        >
          {rows.map((row) => (
            <Row
              key={row.id}
              row={row}
              chosen={mayEnd ? chosen.has(row.id) : null}
              choose={(on) => choose([row.id], on)}
            />
          ))}
        </Table>
      )}
      {page.data && (pages.number > 1 || page.data.next_cursor !== null) && (
        <div class="pager">
          <button type="button" disabled={pages.number === 1} onClick={pages.back}>
            {sort === NEWEST ? "Newer" : "Previous"}
          </button>
          <span>Page {pages.number}</span>
          <button type="button" disabled={page.data.next_cursor === null} onClick={() => pages.next(page.data!.next_cursor!)}>
            {sort === NEWEST ? "Older" : "Next"}
          </button>
        </div>
      )}
    </>
  );
}

function Row(props: { row: Sandbox; chosen: boolean | null; choose: (on: boolean) => void }) {
  const { row } = props;
  const to = link("e", row.environment, "sandboxes", row.id);
  const open = (event: MouseEvent) => {
    if ((event.target as Element).closest("a, input, button") || getSelection()?.toString()) return;
    navigate(to);
  };
  return (
    <tr onClick={open} class={props.chosen ? "chosen" : undefined}>
      {props.chosen !== null && (
        <td>
          <input
            type="checkbox"
            aria-label={`Choose ${row.name ?? row.id}`}
            checked={props.chosen}
            disabled={ENDED.includes(row.state)}
            onChange={(event) => props.choose(event.currentTarget.checked)}
          />
        </td>
      )}
      <td>
        <StateBadge state={row.state} waiting={row.waiting} />
        {row.reason && <span class="below">{words(row.reason)}</span>}
        {row.waiting && <span class="below">waits</span>}
      </td>
      <td>
        <a data-page href={to}>
          {row.name ? <Text most={64}>{row.name}</Text> : <code>{row.id}</code>}
        </a>
        {row.name && <code class="below">{row.id}</code>}
      </td>
      <td class="wide">
        <Text most={60}>{row.image}</Text>
      </td>
      <td>
        <Tags tags={row.tags} />
      </td>
      <td class="number">{range(row.cpu, number)}</td>
      <td class="number">{range(row.memory, mebibytes)}</td>
      <td>{[row.region ?? []].flat().map((region) => plain(region, 40)).join(", ")}</td>
      <td class="number">
        <Ago at={row.created_at} />
      </td>
      <td class="number">
        {row.started_at === null ? <span class="faint">–</span> : <Since from={row.started_at} to={row.ended_at ?? row.stopped_at} />}
      </td>
    </tr>
  );
}

function Filters({ filters }: { filters: Record<"search" | "state" | "tag" | "image" | "region", string> }) {
  const states: [string, string][] = [["", "Living"], ["running", "Running"], ["pending", "Waiting"], ["stopped", "Stopped"], ["ended", "Ended"], ["all", "All"]];
  return (
    <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
      <Typed name="search" label="Search" placeholder="Search names, ids, images, tags" value={filters.search} type="search" />
      <div class="choices" role="group" aria-label="State">
        {states.map(([value, title]) => (
          <button type="button" key={value} aria-pressed={filters.state === value} onClick={() => setQuery({ state: value })}>
            {title}
          </button>
        ))}
      </div>
      <Typed name="tag" label="Tag" placeholder="Tag key:value" value={filters.tag} />
      <Typed name="image" label="Image" placeholder="Image" value={filters.image} />
      <Typed name="region" label="Region" placeholder="Region" value={filters.region} />
    </form>
  );
}

const TYPING_MS = 250;

/** An input whose text becomes part of the address once nothing was typed for a moment. */
function Typed(props: { name: string; label: string; placeholder: string; value: string; type?: string }) {
  const [text, setText] = useState(props.value);
  const timer = useRef(0);
  useEffect(() => setText(props.value), [props.value]);
  const typed = (value: string) => {
    setText(value);
    clearTimeout(timer.current);
    if (props.name === "tag" && value && !/^[^:]+:/.test(value)) return; // not a tag yet
    timer.current = setTimeout(() => setQuery({ [props.name]: value.trim() }), TYPING_MS);
  };
  return (
    <input
      type={props.type ?? "text"}
      name={props.name}
      aria-label={props.label}
      placeholder={props.placeholder}
      value={text}
      maxLength={256}
      spellcheck={false}
      autocomplete="off"
      onInput={(event) => typed(event.currentTarget.value)}
    />
  );
}

function range([request, limit]: [number, number], shown: (value: number) => string): string {
  const [low, high] = [shown(request), shown(limit)];
  const unit = high.split(" ")[1];
  return low === high ? high : `${unit && low.endsWith(unit) ? low.split(" ")[0] : low} – ${high}`;
}

function summary(rows: Sandbox[], more: boolean): string {
  const counts = new Map<string, number>();
  for (const row of rows) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
  const parts = [...LIVING, ...ENDED].filter((state) => counts.has(state)).map((state) => `${counts.get(state)} ${state}`);
  return `${parts.join(", ")}${more ? " on this page" : ""}`;
}

const STATES = new Set<string>([...LIVING, ...ENDED]);

function changed(data: SandboxPage, event: SandboxEvent): SandboxPage {
  const index = data.sandboxes.findIndex((row) => row.id === event.sandbox_id);
  if (index < 0 || !STATES.has(event.kind)) return data;
  const row = { ...data.sandboxes[index]!, state: event.kind as State };
  if (typeof event.data.reason === "string") row.reason = event.data.reason;
  if (event.kind === "running") Object.assign(row, { started_at: row.started_at ?? event.at, waiting: null, reason: null });
  if (ENDED.includes(event.kind)) row.ended_at = event.at;
  return { ...data, sandboxes: data.sandboxes.with(index, row) };
}

async function terminateAll(ids: string[]): Promise<void> {
  const left = [...ids];
  const problems: string[] = [];
  const worker = async () => {
    for (let id = left.shift(); id !== undefined; id = left.shift()) {
      try {
        await api("DELETE", `v1/sandboxes/${id}`);
      } catch (error) {
        problems.push(messageOf(error));
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (problems.length) throw new Error(`${problems.length} of ${ids.length} were not terminated: ${problems[0]}`);
  notify(`${ids.length} terminated.`);
}
