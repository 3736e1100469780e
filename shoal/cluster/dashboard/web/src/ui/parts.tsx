// What all pages are made of.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Problem } from "../lib/api.ts";
import { messageOf } from "../lib/api.ts";
import { duration, moment, now, plain, words } from "../lib/format.ts";

/** The page's heading, and what can be done about all of it. */
export function Heading(props: { title: ComponentChildren; note?: ComponentChildren; children?: ComponentChildren }) {
  return (
    <header class="heading">
      <div class="heading-text">
        <h1 tabIndex={-1}>{props.title}</h1>
        {props.note && <p>{props.note}</p>}
      </div>
      {props.children && <div class="actions">{props.children}</div>}
    </header>
  );
}

export function Badge(props: { tone?: string; children: ComponentChildren; title?: string }) {
  return (
    <span class={`badge ${props.tone ?? ""}`} title={props.title}>
      {props.children}
    </span>
  );
}

export function StateBadge({ state, waiting }: { state: string; waiting?: string | null }) {
  return (
    <span class={`state state-${state}`} title={waiting ? plain(waiting) : undefined}>
      <i aria-hidden="true" />
      {state}
    </span>
  );
}

/** A time as how long ago it was; the whole as its title. */
export function Ago({ at }: { at: number | null }) {
  if (at === null) return <span class="faint">–</span>;
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={moment(at)}>
      {now.value - at < 1.5 ? "now" : `${duration(Math.floor(now.value - at))} ago`}
    </time>
  );
}

export function Since({ from, to }: { from: number; to: number | null }) {
  return <span>{duration(Math.max(0, to === null ? Math.floor(now.value - from) : to - from))}</span>;
}

export function Tags({ tags }: { tags: Record<string, string> }) {
  const all = Object.entries(tags);
  if (!all.length) return null;
  return (
    <span class="tags">
      {all.slice(0, 4).map(([key, value]) => (
        <span class="tag" key={key} title={`${plain(key)}:${plain(value)}`}>
          <bdi>{plain(key, 60)}</bdi>
          <b>
            <bdi>{plain(value, 60)}</bdi>
          </b>
        </span>
      ))}
      {all.length > 4 && <span class="faint">+{all.length - 4}</span>}
    </span>
  );
}

/** Text that came out of a sandbox or from a user. */
export function Text({ children, most }: { children: string; most?: number }) {
  return (
    <bdi class="text" title={children.length > (most ?? 300) ? plain(children, 4000) : undefined}>
      {plain(children, most)}
    </bdi>
  );
}

/** Nothing is there: what it would be, and the command that makes it. */
export function Empty(props: { title: string; children?: ComponentChildren; command?: string }) {
  return (
    <div class="empty">
      <h2>{props.title}</h2>
      {props.children && <p>{props.children}</p>}
      {props.command && <Command text={props.command} />}
    </div>
  );
}

export function Failure({ problem, retry }: { problem: Problem; retry?: () => void }) {
  return (
    <div class="failure" role="alert">
      <strong>{words(problem.code)}</strong>
      <p>{plain(problem.message, 1000)}</p>
      {problem.requestId && <p class="faint">Request {problem.requestId}</p>}
      {retry && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Banner({ tone, title, children }: { tone: string; title: string; children: string }) {
  return (
    <div class={`banner ${tone}`}>
      <strong>{title}</strong>
      {children && <Text most={1000}>{children}</Text>}
    </div>
  );
}

export function Loading() {
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setSeen(true), 250); // what is quick shows no spinner
    return () => clearTimeout(timer);
  }, []);
  return <div class="loading">{seen && <span role="status">Loading…</span>}</div>;
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await copyText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return (
    <button type="button" class="quiet" onClick={() => void copy()}>
      {done ? "Copied" : label}
    </button>
  );
}

async function copyText(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // There is no clipboard without TLS: the old way.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export function Command({ text }: { text: string }) {
  return (
    <div class="command">
      <pre tabIndex={0}>{text}</pre>
      <Copy text={text} />
    </div>
  );
}

// Notices

interface Notice {
  id: number;
  text: string;
  bad: boolean;
}

const notices = signal<Notice[]>([]);
let lastNotice = 0;
const NOTICE_MS = 8000;
const MOST_NOTICES = 4;

export function notify(text: string, bad = false): void {
  const id = ++lastNotice;
  notices.value = [...notices.value.slice(1 - MOST_NOTICES), { id, text: plain(text, 500), bad }];
  setTimeout(() => dismiss(id), NOTICE_MS);
}

/** Does something, and tells of its failure. Returns whether it went well. */
export async function attempt(work: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await work();
    if (done) notify(done);
    return true;
  } catch (error) {
    notify(messageOf(error), true);
    return false;
  }
}

const dismiss = (id: number) => {
  notices.value = notices.value.filter((notice) => notice.id !== id);
};

export function Notices() {
  return (
    <div class="notices" role="status" aria-live="polite">
      {notices.value.map((notice) => (
        <div key={notice.id} class={notice.bad ? "notice bad" : "notice"}>
          <span>{notice.text}</span>
          <button type="button" class="quiet" aria-label="Dismiss" onClick={() => dismiss(notice.id)}>
            ×
          </button>
        </div>
      ))}
    </div>
  );
}

/** A dialog of the browser's own: it keeps the focus, and Escape closes it. */
export function Dialog(props: { title: string; onClose: () => void; children: ComponentChildren; wide?: boolean }) {
  const element = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const dialog = element.current!;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  return (
    <dialog ref={element} class={props.wide ? "wide" : undefined} onClose={props.onClose} aria-label={props.title}>
      <h2>{props.title}</h2>
      {props.children}
    </dialog>
  );
}

/** A dialog with fields: Enter or the button `label` does `run`, and closes it once that has succeeded, unless `stays`. */
export function FormDialog(props: {
  title: string;
  label: string;
  run: () => Promise<unknown>;
  onClose: () => void;
  stays?: boolean;
  children: ComponentChildren;
}) {
  const submit = async (event: Event) => {
    event.preventDefault();
    if ((await attempt(props.run)) && !props.stays) props.onClose();
  };
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form class="form" onSubmit={(event) => void submit(event)}>
        {props.children}
        <div class="dialog-actions">
          <button type="button" onClick={props.onClose}>
            Cancel
          </button>
          <button type="submit" class="solid">
            {props.label}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** A button that asks before it does what cannot be undone. */
export function Confirmed(props: {
  label: string;
  title: string;
  explain: ComponentChildren;
  disabled?: boolean;
  quiet?: boolean;
  run: () => Promise<unknown>;
}) {
  const [open, setOpen] = useState(false);
  const [busy, setBusy] = useState(false);
  const go = async () => {
    setBusy(true);
    await attempt(props.run);
    setBusy(false);
    setOpen(false);
  };
  return (
    <>
      <button type="button" class={props.quiet ? "quiet danger" : "danger"} disabled={props.disabled} onClick={() => setOpen(true)}>
        {props.label}
      </button>
      {open && (
        <Dialog title={props.title} onClose={() => setOpen(false)}>
          <p>{props.explain}</p>
          <div class="dialog-actions">
            <button type="button" onClick={() => setOpen(false)}>
              Cancel
            </button>
            <button type="button" class="danger solid" disabled={busy} onClick={() => void go()}>
              {busy ? "Working…" : props.label}
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}

export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value ?? <span class="faint">–</span>}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A table that scrolls sideways where the screen is small. */
export function Table(props: { label: string; head: ComponentChildren[]; children: ComponentChildren; class?: string }) {
  return (
    <div class="table" tabIndex={0} role="region" aria-label={props.label}>
      <table class={props.class}>
        <thead>
          <tr>
            {props.head.map((cell, index) => (
              <th key={index} scope="col">
                {cell || <span class="unseen">Actions</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  );
}

/** How much of something is used. `plain`: much of it is nothing to be warned of. */
export function Meter({ used, total, label, plain }: { used: number; total: number | null; label: string; plain?: boolean }) {
  const share = total ? Math.min(1, used / total) : 0;
  const tone = plain ? "" : share > 0.9 ? "full" : share > 0.7 ? "high" : "";
  return (
    <span class="meter-line">
      <span class={`meter ${tone}`} role="img" aria-label={`${label}: ${Math.round(share * 100)} %`}>
        <span style={{ width: `${share * 100}%` }} />
      </span>
      <span class="meter-text">{label}</span>
    </span>
  );
}
