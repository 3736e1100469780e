// Output as it comes, as text: at most so much of it is kept, the newest.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { Problem, request, type Query } from "../lib/api.ts";
import { bytes } from "../lib/format.ts";
import { Failure } from "./parts.tsx";

const MOST_CHARACTERS = 400_000;
const MOST_IN_A_LINE = 4_000;
const PAINT_MS = 100;
const RETRY_MS = 1000;

// Control characters other than newline and tab, and colour codes: this is a text, not a terminal.
const CODES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Output made harmless: no escapes, no characters that reorder the text, no endless lines. */
export function tame(text: string): string {
  return text
    .replace(/\r+\n/g, "\n")
    .replace(CODES, "")
    .replace(UNSEEN, "\u00b7")
    .split("\n")
    .map((line) => (line.length > MOST_IN_A_LINE ? `${line.slice(0, MOST_IN_A_LINE)}… (${line.length} characters)` : line))
    .join("\n");
}

/** Output as text, seen at its end as long as one does not scroll up. */
export function LogText(props: { text: string; skipped: number; label: string; note: string; children?: ComponentChildren }) {
  const box = useRef<HTMLPreElement>(null);
  const atEnd = useRef(true);
  const text = useMemo(() => tame(props.text), [props.text]);
  useLayoutEffect(() => {
    if (atEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);
  return (
    <figure class="stream">
      {props.skipped > 0 && <p class="faint">The first {bytes(props.skipped)} are not shown.</p>}
      <pre
        ref={box}
        tabIndex={0}
        role="log"
        aria-live="off"
        aria-label={props.label}
        onScroll={(event) => {
          const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
          atEnd.current = scrollHeight - scrollTop - clientHeight < 40;
        }}
      >
        {text}
      </pre>
      <figcaption class="faint">
        {props.note} {props.children}
      </figcaption>
    </figure>
  );
}

export function Stream({ path, query, label }: { path: string; query: Query; label: string }) {
  const [text, setText] = useState("");
  const [state, setState] = useState<"open" | "lost" | "ended">("open");
  const [problem, setProblem] = useState<Problem | null>(null);
  const [skipped, setSkipped] = useState(0);
  const [turn, setTurn] = useState(0);

  useEffect(() => {
    const abort = new AbortController();
    let held = "";
    let cut = 0;
    let timer = 0;
    const paint = () => {
      timer = 0;
      setText(held);
      setSkipped(cut);
    };
    const take = (more: string) => {
      held += more;
      if (held.length > MOST_CHARACTERS) {
        cut += held.length - MOST_CHARACTERS;
        held = held.slice(-MOST_CHARACTERS);
      }
      timer ||= setTimeout(paint, PAINT_MS);
    };
    const decoder = new TextDecoder();
    let at = 0; // bytes of the output that came
    const read = async () => {
      const response = await request("GET", path, { query: { ...query, offset: at || null }, signal: abort.signal });
      const begin = Number(response.headers.get("X-Shoal-Offset") ?? at);
      cut += begin - at;
      at = begin;
      setState("open");
      const reader = response.body!.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        at += value.length;
        take(decoder.decode(value, { stream: true }));
      }
    };
    // What is cut off goes on where it was.
    const readAll = async () => {
      for (;;) {
        try {
          await read();
          return setState("ended");
        } catch (error) {
          if (abort.signal.aborted) return;
          if (error instanceof Problem && !error.passing) return setProblem(error);
        }
        setState("lost");
        await new Promise((done) => setTimeout(done, RETRY_MS));
        if (abort.signal.aborted) return;
      }
    };
    setText("");
    setState("open");
    setProblem(null);
    void readAll();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [path, JSON.stringify(query), turn]);

  if (problem) return <Failure problem={problem} retry={() => setTurn(turn + 1)} />;
  const written = text ? "Follows what is written." : "Nothing was written yet.";
  const note = { lost: "The connection is lost. Trying again…", open: written, ended: text ? "This is the end of it." : "It wrote nothing." }[state];
  return (
    <LogText text={text} skipped={skipped} label={label} note={note}>
      {state === "ended" && (
        <button type="button" class="quiet" onClick={() => setTurn(turn + 1)}>
          Read again
        </button>
      )}
    </LogText>
  );
}
