// A shell in the sandbox, over the attach WebSocket. A lost connection comes back where it was: output and input are
// addressed by offset.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal as Screen, type ITheme } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { useEffect, useRef, useState } from "preact/hooks";
import { passing } from "../../lib/api.ts";
import { root } from "../../lib/router.ts";
import type { Sandbox } from "../../lib/types.ts";

const SHELL = "if command -v bash >/dev/null; then exec bash; else exec sh; fi";
const RETRY_MS = 1000;
const MOST_RETRIES = 300;
const PIECE = 64 << 10;
const MOST_KEPT = 100; // pieces: a key is one
const SCROLLBACK = 5000;
const STDIN = 0;
const STDOUT = 1;

/** The screen makes style elements for its colours and sizes. The page's policy lets those count that have its nonce,
 * which the screen has no setting for. */
function giveStylesNonce(): void {
  const nonce = document.getElementById("shoal")!.nonce;
  const make = document.createElement.bind(document) as (name: string, options?: ElementCreationOptions) => HTMLElement;
  document.createElement = ((name: string, options?: ElementCreationOptions) => {
    const made = make(name, options);
    if (made instanceof HTMLStyleElement) made.nonce = nonce;
    return made;
  }) as typeof document.createElement;
}

giveStylesNonce();

function theme(): ITheme {
  const of = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return {
    background: of("--code"),
    foreground: of("--ink"),
    cursor: of("--accent"),
    selectionBackground: of("--line-strong"),
    ...(matchMedia("(prefers-color-scheme: dark)").matches ? {} : { yellow: "#8a5a00", brightYellow: "#8a5a00", white: "#4a555e", brightWhite: "#14191d", green: "#1a7a45", brightGreen: "#1a7a45", cyan: "#0b6a80", brightCyan: "#0b6a80" }),
  };
}

class Session {
  private socket: WebSocket | null = null;
  private id: string | null = null;
  private attached = false;
  private read = 0; // bytes of output
  // The newest input, which a lost connection may have swallowed, and the offset at which it begins: it is sent again,
  // and what has arrived does not count twice.
  private kept: Uint8Array[] = [];
  private keptAt = 0;
  private unsent: Uint8Array[] = [];
  private tries = 0;
  private over = false;
  private timer = 0;

  constructor(
    private readonly sandbox: string,
    private readonly screen: Screen,
    private readonly tell: (state: string, over: boolean) => void,
  ) {}

  open(): void {
    const url = new URL(`${root}v1/sandboxes/${this.sandbox}/attach`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, ["shoal.v1"]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const { rows, cols } = this.screen;
      const first = this.id
        ? { id: this.id, stdout_offset: this.read, stdin_offset: this.keptAt }
        : { command: SHELL, pty: { rows, cols, term: "xterm-256color" } };
      socket.send(JSON.stringify(first));
    };
    socket.onmessage = (message: MessageEvent<string | ArrayBuffer>) => {
      if (typeof message.data === "string") this.said(JSON.parse(message.data));
      else this.take(new Uint8Array(message.data));
    };
    socket.onclose = () => this.lost();
    this.socket = socket;
  }

  private said(message: { type: string; id?: string; returncode?: number; stdin_offset?: number | null; problem?: { detail: string; status: number } }): void {
    if (message.type === "started") {
      this.id = message.id!;
      this.attached = true;
      this.tries = 0;
      this.tell("", false);
      if (typeof message.stdin_offset === "number") for (const piece of this.kept) this.pass(piece);
      for (const piece of this.unsent.splice(0)) this.send(piece);
      this.resize();
    } else if (message.type === "exit") this.end(`The shell has ended with exit code ${message.returncode}.`);
    else if (message.type === "error" && !passing(message.problem!.status)) this.end(message.problem!.detail);
  }

  private take(data: Uint8Array): void {
    if (data[0] !== STDOUT) return;
    const bytes = data.subarray(1);
    this.read += bytes.length;
    this.screen.write(bytes);
  }

  private lost(): void {
    this.socket = null;
    this.attached = false;
    if (this.over) return;
    this.tries += 1;
    if (this.tries > MOST_RETRIES) return this.end("The connection is lost.");
    this.tell("The connection is lost. Trying again…", false);
    this.timer = setTimeout(() => this.open(), RETRY_MS);
  }

  private end(why: string): void {
    this.over = true;
    this.tell(why, true);
    this.socket?.close();
  }

  send(data: Uint8Array): void {
    for (let at = 0; at < data.length; at += PIECE) {
      const piece = data.subarray(at, at + PIECE);
      if (this.socket?.readyState !== WebSocket.OPEN || !this.attached) {
        if (!this.over) this.unsent.push(piece);
        continue;
      }
      this.pass(piece);
      this.kept.push(piece);
      while (this.kept.length > MOST_KEPT) this.keptAt += this.kept.shift()!.length;
    }
  }

  private pass(piece: Uint8Array): void {
    const message = new Uint8Array(piece.length + 1);
    message[0] = STDIN;
    message.set(piece, 1);
    this.socket!.send(message);
  }

  resize(): void {
    if (this.socket?.readyState !== WebSocket.OPEN || !this.attached) return;
    const { rows, cols } = this.screen;
    this.socket.send(JSON.stringify({ type: "resize", rows, cols }));
  }

  /** The shell gets what closing a terminal's window gives. */
  close(): void {
    clearTimeout(this.timer);
    if (!this.over && this.socket?.readyState === WebSocket.OPEN && this.id !== null)
      this.socket.send(JSON.stringify({ type: "signal", signal: "SIGHUP", tree: true }));
    this.over = true;
    this.socket?.close();
  }
}

export default function Terminal({ sandbox }: { sandbox: Sandbox }) {
  const place = useRef<HTMLDivElement>(null);
  const [state, setState] = useState("Connecting…");
  const [over, setOver] = useState(false);
  const [turn, setTurn] = useState(0);

  useEffect(() => {
    const screen = new Screen({
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono").trim(),
      fontSize: 13,
      cursorBlink: true,
      scrollback: SCROLLBACK,
      theme: theme(),
      screenReaderMode: false,
      linkHandler: null,
    });
    const fit = new FitAddon();
    screen.loadAddon(fit);
    screen.open(place.current!);
    fit.fit();
    const session = new Session(sandbox.id, screen, (text, ended) => {
      setState(text);
      setOver(ended);
    });
    const encoder = new TextEncoder();
    screen.onData((text) => session.send(encoder.encode(text)));
    screen.onBinary((text) => session.send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    screen.onResize(() => session.resize());
    const sizes = new ResizeObserver(() => fit.fit());
    sizes.observe(place.current!);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const recolour = () => {
      screen.options.theme = theme();
    };
    dark.addEventListener("change", recolour);
    session.open();
    screen.focus();
    return () => {
      dark.removeEventListener("change", recolour);
      sizes.disconnect();
      session.close();
      screen.dispose();
    };
  }, [sandbox.id, turn]);

  return (
    <>
      <div class="terminal" ref={place} />
      <p class="faint" role="status">
        {state || "Connected. What you leave running here ends with this page; start what is to stay with “shoal exec”."}{" "}
        {over && (
          <button type="button" class="quiet" onClick={() => setTurn(turn + 1)}>
            New shell
          </button>
        )}
      </p>
    </>
  );
}
