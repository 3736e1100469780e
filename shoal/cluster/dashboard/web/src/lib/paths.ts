// Paths in a sandbox may be any bytes. Here one is a text whose bytes are percent-encoded where they are not plain.

export type Name = string | { b64: string };

/** A name or path of the API, percent-encoded. */
export function encoded(name: Name): string {
  if (typeof name === "string") return name.split("/").map(encodeURIComponent).join("/");
  return Array.from(atob(name.b64), (c) => (c === "/" ? c : `%${c.charCodeAt(0).toString(16).padStart(2, "0").toUpperCase()}`)).join("");
}

function bytesOf(path: string): Uint8Array {
  const found: number[] = [];
  for (let at = 0; at < path.length; at++) {
    if (path[at] === "%") {
      found.push(parseInt(path.slice(at + 1, at + 3), 16));
      at += 2;
    } else found.push(path.charCodeAt(at));
  }
  return Uint8Array.from(found);
}

/** For people: bytes that are no text as replacement characters. */
export const shown = (path: string) => new TextDecoder().decode(bytesOf(path));

/** As the API takes it in JSON. */
export function asJson(path: string): Name {
  const bytes = bytesOf(path);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return { b64: btoa(String.fromCharCode(...bytes)) };
  }
}

export const join = (directory: string, name: string) => `${directory.replace(/\/$/, "")}/${name}`;

export function parent(path: string): string {
  return path.replace(/\/[^/]*\/?$/, "") || "/";
}

export const last = (path: string) => path.slice(path.lastIndexOf("/") + 1);
