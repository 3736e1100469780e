import { encoded } from "../../lib/paths.ts";
import type { Sandbox } from "../../lib/types.ts";
import { FileBrowser } from "../../ui/files.tsx";

export function Files({ sandbox }: { sandbox: Sandbox }) {
  const route = `v1/sandboxes/${sandbox.id}`;
  return (
    <FileBrowser
      at={{
        key: sandbox.id,
        start: encoded(sandbox.workdir ?? "/"),
        file: (path) => `${route}/files?path=${path}`,
        opened: async () => route,
        inside: (path) => path,
      }}
    />
  );
}
