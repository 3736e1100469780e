// Pages about the cluster's machines, environments, tokens and its audit log.
import { useState } from "preact/hooks";
import { api, get, may, me } from "../lib/api.ts";
import { bytes, mebibytes, moment, number, plain, words } from "../lib/format.ts";
import { useResource } from "../lib/resource.ts";
import { link, query, setQuery } from "../lib/router.ts";
import type { AuditEntry, Environment, NodeInfo, Quota, Token } from "../lib/types.ts";
import { Ago, attempt, Badge, Confirmed, Copy, Dialog, Empty, Failure, FormDialog, Heading, Loading, Meter, Table, Text } from "../ui/parts.tsx";

const EVERY_MS = 5000;

export function NodesPage() {
  const found = useResource((signal) => get<{ nodes: NodeInfo[] }>("v1/nodes", {}, signal), [], EVERY_MS);
  const nodes = found.data?.nodes;
  return (
    <>
      <Heading title="Nodes" note={nodes && `${nodes.length} in the cluster. CPU and memory: what sandboxes have asked for.`} />
      {found.error && !nodes && <Failure problem={found.error} retry={found.reload} />}
      {!nodes && !found.error && <Loading />}
      {nodes?.length === 0 && <Empty title="No node" command="shoal join" />}
      {nodes && nodes.length > 0 && (
        <Table label="Nodes" head={["State", "Node", "Region", "Sandboxes", "CPU", "Memory", "GPUs", "Engine", ""]}>
          {nodes.map((node) => (
            <NodeRow key={node.id} node={node} reload={found.reload} />
          ))}
        </Table>
      )}
    </>
  );
}

function NodeRow({ node, reload }: { node: NodeInfo; reload: () => void }) {
  const [cordoning, setCordoning] = useState(false);
  const path = `v1/nodes/${encodeURIComponent(node.id)}`;
  const cpu = node.cpu_total - node.cpu_free;
  const memory = node.memory_total - node.memory_free;
  return (
    <tr>
      <td>
        {!node.alive ? <Badge tone="bad">away</Badge> : node.cordon ? <Badge tone="wait">cordoned</Badge> : <Badge tone="good">ready</Badge>}
        {node.cordon && (
          <span class="below">
            <Text most={120}>{node.cordon.why}</Text>
          </span>
        )}
      </td>
      <td>
        <Text most={80}>{node.hostname}</Text>
        <code class="below" title={node.id}>
          {node.id.slice(0, 16)}
        </code>
      </td>
      <td>
        {node.region ?? <span class="faint">–</span>}
        {node.zone && <span class="below">{node.zone}</span>}
      </td>
      <td class="number">
        {node.sandboxes}
        {node.stopped > 0 && <span class="below">{node.stopped} stopped</span>}
      </td>
      <td>
        <Meter used={cpu} total={node.cpu_total} label={`${number(cpu)} of ${number(node.cpu_total)}`} />
      </td>
      <td>
        <Meter used={memory} total={node.memory_total} label={`${mebibytes(memory)} of ${mebibytes(node.memory_total)}`} />
      </td>
      <td class="number">{node.gpus ? `${node.gpus - node.gpus_free} of ${node.gpus}` : <span class="faint">–</span>}</td>
      <td>
        {node.engine}
        <span class="below">{node.runtimes.join(", ")}</span>
      </td>
      <td class="row-actions">
        {may("admin", true) &&
          (node.cordon ? (
            <button type="button" class="quiet" onClick={() => void attempt(() => api("DELETE", `${path}/cordon`)).then(reload)}>
              Uncordon
            </button>
          ) : (
            <button type="button" class="quiet" onClick={() => setCordoning(true)}>
              Cordon
            </button>
          ))}
        {cordoning && (
          <Ask
            title={`Cordon ${plain(node.hostname, 60)}?`}
            label="Why"
            explain="No new sandbox starts on it; what runs there goes on."
            onClose={() => setCordoning(false)}
            run={async (why) => {
              await api("PUT", `${path}/cordon`, { body: { why } });
              reload();
            }}
          />
        )}
      </td>
    </tr>
  );
}

function Ask(props: { title: string; label: string; explain: string; onClose: () => void; run: (text: string) => Promise<void> }) {
  const [text, setText] = useState("");
  return (
    <FormDialog title={props.title} label="Go on" run={() => props.run(text)} onClose={props.onClose}>
      <p>{props.explain}</p>
      <label>
        <span>{props.label}</span>
        <input required maxLength={256} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      </label>
    </FormDialog>
  );
}

const QUOTAS: [keyof Quota, string, (value: number) => string][] = [
  ["sandboxes", "Sandboxes", number],
  ["cpu", "CPU cores", number],
  ["memory", "Memory in MiB", mebibytes],
  ["creates_per_minute", "Creates a minute", number],
  ["volume_bytes", "Volumes in bytes", bytes],
  ["volume_files", "Files in volumes", number],
];

export function EnvironmentsPage() {
  const found = useResource((signal) => get<{ environments: Environment[] }>("v1/environments", {}, signal), [], EVERY_MS);
  const [editing, setEditing] = useState<Environment | "new" | null>(null);
  const environments = found.data?.environments;
  const manage = may("admin", true);
  return (
    <>
      <Heading title="Environments" note="Names, tokens and quotas live inside one.">
        {manage && (
          <button type="button" class="solid" onClick={() => setEditing("new")}>
            New environment
          </button>
        )}
      </Heading>
      {found.error && !environments && <Failure problem={found.error} retry={found.reload} />}
      {!environments && !found.error && <Loading />}
      {environments && (
        <Table label="Environments" head={["Name", ...QUOTAS.map(([, title]) => title.replace(/ in (MiB|bytes)/, "")), "Created", ""]}>
          {environments.map((each) => (
            <tr key={each.name}>
              <td>
                <b>{each.name}</b>
              </td>
              {QUOTAS.map(([name, title, shown]) => {
                const used = each.usage[name] ?? 0;
                const most = each.quota[name];
                return (
                  <td key={name}>
                    {most === null ? (
                      <span class="meter-text">{shown(used)}</span>
                    ) : (
                      <Meter used={used} total={most || 1e-9} label={`${shown(used)} of ${shown(most)}`} />
                    )}
                    <span class="unseen">{title}</span>
                  </td>
                );
              })}
              <td class="number">
                <Ago at={each.created_at} />
              </td>
              <td class="row-actions">
                {manage && (
                  <button type="button" class="quiet" onClick={() => setEditing(each)}>
                    Quota
                  </button>
                )}
                {manage && each.name !== "main" && (
                  <Confirmed
                    quiet
                    label="Delete"
                    title={`Delete ${each.name}?`}
                    explain="Its tokens are revoked. It must have no living sandbox."
                    run={async () => {
                      await api("DELETE", `v1/environments/${each.name}`);
                      found.reload();
                    }}
                  />
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {editing && (
        <EditEnvironment
          environment={editing === "new" ? null : editing}
          onClose={() => {
            setEditing(null);
            found.reload();
          }}
        />
      )}
    </>
  );
}

function EditEnvironment({ environment, onClose }: { environment: Environment | null; onClose: () => void }) {
  const [name, setName] = useState(environment?.name ?? "");
  const [quota, setQuota] = useState<Record<string, string>>(() =>
    Object.fromEntries(QUOTAS.map(([member]) => [member, environment?.quota[member]?.toString() ?? ""])),
  );
  const save = () => {
    const body = Object.fromEntries(QUOTAS.map(([member]) => [member, quota[member] ? Number(quota[member]) : null]));
    return environment
      ? api("PUT", `v1/environments/${environment.name}/quota`, { body })
      : api("POST", "v1/environments", { body: { name, quota: body } });
  };
  return (
    <FormDialog title={environment ? `Quota of ${environment.name}` : "New environment"} label="Save" run={save} onClose={onClose}>
      {!environment && (
        <label>
          <span>Name</span>
          <input required maxLength={64} value={name} onInput={(event) => setName(event.currentTarget.value)} />
        </label>
      )}
      {QUOTAS.map(([member, title]) => (
        <label key={member}>
          <span>{title}</span>
          <input
            type="number"
            min={0}
            step={member === "cpu" ? "any" : 1}
            placeholder="no bound"
            value={quota[member]}
            onInput={(event) => setQuota({ ...quota, [member]: event.currentTarget.value })}
          />
        </label>
      ))}
    </FormDialog>
  );
}

export function TokensPage() {
  const found = useResource((signal) => get<{ tokens: Token[] }>("v1/tokens", {}, signal), [], 15_000);
  const [making, setMaking] = useState(false);
  const [all, setAll] = useState(false);
  const now = Date.now() / 1000;
  const good = (token: Token) => token.revoked_at === null && (token.expires_at === null || token.expires_at > now);
  const tokens = found.data?.tokens.filter((token) => all || good(token));
  return (
    <>
      <Heading title="Tokens" note="A token’s text is shown once, when it is made.">
        <button type="button" aria-pressed={all} onClick={() => setAll(!all)}>
          {all ? "Hide ended ones" : "Show ended ones"}
        </button>
        <button type="button" class="solid" onClick={() => setMaking(true)}>
          New token
        </button>
      </Heading>
      {found.error && !tokens && <Failure problem={found.error} retry={found.reload} />}
      {!tokens && !found.error && <Loading />}
      {tokens && (
        <Table label="Tokens" head={["Name", "Scope", "Environment", "Last used", "Expires", "Made", ""]}>
          {tokens.map((token) => (
            <tr key={token.id}>
              <td>
                <Text most={120}>{token.name}</Text> {token.id === me.value?.id && <Badge tone="good">this session</Badge>}
                <code class="below">{token.id}</code>
              </td>
              <td>{token.scope}</td>
              <td>{token.environment === "*" ? "all" : token.environment}</td>
              <td class="number">
                <Ago at={token.last_used_at} />
              </td>
              <td class="number">
                {token.revoked_at !== null ? (
                  <Badge tone="bad">revoked</Badge>
                ) : token.expires_at === null ? (
                  <span class="faint">never</span>
                ) : token.expires_at <= now ? (
                  <Badge>expired</Badge>
                ) : (
                  moment(token.expires_at)
                )}
              </td>
              <td class="number">
                <Ago at={token.created_at} />
              </td>
              <td class="row-actions">
                {good(token) && (
                  <Confirmed
                    quiet
                    label="Revoke"
                    title={`Revoke ${plain(token.name, 60)}?`}
                    explain={token.id === me.value?.id ? "This is the token that you are signed in with: your session ends." : "Whoever uses it is refused within seconds."}
                    run={async () => {
                      await api("DELETE", `v1/tokens/${token.id}`);
                      found.reload();
                    }}
                  />
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {making && (
        <NewToken
          onClose={() => {
            setMaking(false);
            found.reload();
          }}
        />
      )}
    </>
  );
}

const LIVES: [string, number | null][] = [
  ["a day", 86400],
  ["30 days", 30 * 86400],
  ["a year", 365 * 86400],
  ["for ever", null],
];

function NewToken({ onClose }: { onClose: () => void }) {
  const own = me.value!.environment;
  const [name, setName] = useState("");
  const [scope, setScope] = useState("run");
  const [environment, setEnvironment] = useState(own);
  const [life, setLife] = useState(1);
  const [text, setText] = useState<string | null>(null);
  const environments = useResource((signal) => get<{ environments: Environment[] }>("v1/environments", {}, signal), []);
  const make = async () => {
    const made = await api<{ token: string }>("POST", "v1/tokens", { body: { name, scope, environment, expires_in: LIVES[life]![1] } });
    setText(made.token);
  };
  if (text)
    return (
      <Dialog title="The new token" onClose={onClose}>
        <p>Copy it now: it is not shown again.</p>
        <div class="command tall">
          <pre>{text}</pre>
          <Copy text={text} />
        </div>
        <div class="dialog-actions">
          <button type="button" class="solid" onClick={onClose}>
            Done
          </button>
        </div>
      </Dialog>
    );
  return (
    <FormDialog title="New token" label="Make" run={make} onClose={onClose} stays>
      <label>
        <span>What it is for</span>
        <input required maxLength={256} value={name} placeholder="ann’s laptop" onInput={(event) => setName(event.currentTarget.value)} />
      </label>
      <label>
        <span>Scope</span>
        <select value={scope} onChange={(event) => setScope(event.currentTarget.value)}>
          <option value="read">read: look, change nothing</option>
          <option value="run">run: create and use sandboxes</option>
          <option value="admin">admin: also tokens and the audit log</option>
        </select>
      </label>
      <label>
        <span>Environment</span>
        <select value={environment} onChange={(event) => setEnvironment(event.currentTarget.value)}>
          {own === "*" && <option value="*">all</option>}
          {environments.data?.environments.map((each) => <option key={each.name}>{each.name}</option>)}
        </select>
      </label>
      <label>
        <span>Valid for</span>
        <select value={life} onChange={(event) => setLife(Number(event.currentTarget.value))}>
          {LIVES.map(([title], index) => (
            <option key={title} value={index}>
              {title}
            </option>
          ))}
        </select>
      </label>
    </FormDialog>
  );
}

function Target({ entry }: { entry: AuditEntry }) {
  const target = entry.target!;
  if (entry.environment === "*" || !/^sb-[0-9a-z]+$/.test(target)) return <Text most={120}>{target}</Text>;
  return (
    <a data-page href={link("e", entry.environment, "sandboxes", target)}>
      <code>{target}</code>
    </a>
  );
}

const AUDIT_PAGE = 100;

export function AuditPage() {
  const before = query.value.get("before");
  const found = useResource((signal) => get<{ entries: AuditEntry[] }>("v1/audit", { before, limit: AUDIT_PAGE }, signal), [before]);
  const entries = found.data?.entries;
  return (
    <>
      <Heading title="Audit" note="What was done or refused, and by whom, newest first.">
        <button type="button" onClick={found.reload}>
          Refresh
        </button>
      </Heading>
      {found.error && !entries && <Failure problem={found.error} retry={found.reload} />}
      {!entries && !found.error && <Loading />}
      {entries?.length === 0 && <Empty title="No entries" />}
      {entries && entries.length > 0 && (
        <Table label="Audit log" head={["Time", "Action", "Target", "Outcome", "Token", "Environment", "Address"]}>
          {entries.map((entry) => (
            <tr key={entry.id}>
              <td class="number">{moment(entry.at)}</td>
              <td>{entry.action}</td>
              <td class="wide">{entry.target && <Target entry={entry} />}</td>
              <td title={entry.request_id ? `Request ${plain(entry.request_id, 64)}` : undefined}>
                {entry.outcome === "ok" ? <span class="faint">ok</span> : <Badge tone="bad">{words(plain(entry.outcome, 60))}</Badge>}
                {entry.outcome !== "ok" && entry.request_id && <code class="below">{plain(entry.request_id, 64)}</code>}
              </td>
              <td>
                <code>{entry.token}</code>
              </td>
              <td>{entry.environment}</td>
              <td>{entry.address}</td>
            </tr>
          ))}
        </Table>
      )}
      {entries && (before || entries.length === AUDIT_PAGE) && (
        <div class="pager">
          <button type="button" disabled={!before} onClick={() => setQuery({ before: null }, false)}>
            Newest
          </button>
          <button type="button" disabled={entries.length < AUDIT_PAGE} onClick={() => setQuery({ before: String(entries.at(-1)!.id) }, false)}>
            Older
          </button>
        </div>
      )}
    </>
  );
}
