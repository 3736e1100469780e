// The address: a path below the dashboard's root, and a query. Every view has one that can be shared.
import { computed, signal } from "@preact/signals";

const meta = document.querySelector<HTMLMetaElement>('meta[name="shoal-root"]')!;

/** Where the dashboard and the API begin, with a slash at the end. */
export const root = new URL(meta.content, location.href).pathname;

const address = signal({ path: pathHere(), query: location.search });

/** The path below the root, decoded, without slashes around it. */
export const segments = computed(() => address.value.path.split("/").filter(Boolean).map(decode));
export const query = computed(() => new URLSearchParams(address.value.query));

function pathHere(): string {
  return location.pathname.slice(root.length);
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** An address of the dashboard: `link("e", "main", "sandboxes")`. */
export function link(...parts: string[]): string {
  return root + parts.map(encodeURIComponent).join("/");
}

export function navigate(to: string, replace = false): void {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  address.value = { path: pathHere(), query: location.search };
  if (!replace) scrollTo(0, 0);
}

/** Changes members of the query; an empty value removes one. */
export function setQuery(changes: Record<string, string | null>, replace = true): void {
  const next = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  const text = next.toString();
  navigate(location.pathname + (text ? `?${text}` : ""), replace);
}

/** Follows links of the dashboard without loading the page again. */
export function watchAddress(): void {
  addEventListener("popstate", () => {
    address.value = { path: pathHere(), query: location.search };
  });
  document.addEventListener("click", (event) => {
    const anchor = (event.target as Element).closest?.("a");
    if (!anchor || event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    if (anchor.origin !== location.origin || anchor.target || anchor.hasAttribute("download")) return;
    if (!anchor.hasAttribute("data-page")) return;
    event.preventDefault();
    navigate(anchor.href.slice(location.origin.length));
  });
}
