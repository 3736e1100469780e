// Numbers and times as people read them.
import { signal } from "@preact/signals";

/** Unix seconds, once a second, while the page is seen. */
export const now = signal(Date.now() / 1000);
setInterval(() => {
  if (!document.hidden) now.value = Date.now() / 1000;
}, 1000);

const UNITS: [number, string][] = [
  [86400, "d"],
  [3600, "h"],
  [60, "m"],
];

/** A length of time: `2h 5m`, `48s`, `0.3s`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, seconds);
  if (whole < 10) return `${whole.toFixed(1).replace(/\.0$/, "")}s`;
  for (const [index, [size, name]] of UNITS.entries()) {
    if (whole < size) continue;
    const rest = whole % size;
    const [smaller, its] = UNITS[index + 1] ?? [1, "s"];
    const more = Math.floor(rest / smaller);
    return `${Math.floor(whole / size)}${name}${more ? ` ${more}${its}` : ""}`;
  }
  return `${Math.floor(whole)}s`;
}

export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export const mebibytes = (count: number) => bytes(count * 1024 * 1024);

export function number(value: number): string {
  return value.toLocaleString("en", { maximumFractionDigits: 2 });
}

export function moment(at: number): string {
  return new Date(at * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function clock(at: number): string {
  return new Date(at * 1000).toLocaleTimeString();
}

/** `node_lost` as `node lost`. */
export const words = (text: string) => text.replaceAll("_", " ");

// Text out of sandboxes may hold characters that hide or reorder what stands around them.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Hostile text on one line: unseen characters as `\u{…}`, and no more than `most` characters. */
export function plain(text: string, most = 300): string {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return cut.replace(UNSEEN, (c) => `\\u{${c.charCodeAt(0).toString(16)}}`).replace(/[\n\t]/g, " ");
}
