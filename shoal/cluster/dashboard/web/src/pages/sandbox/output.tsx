import { useEffect, useState } from "preact/hooks";
import type { Sandbox } from "../../lib/types.ts";
import { Stream } from "../../ui/stream.tsx";

/** What the sandbox's own command writes, as it comes. */
export function Output({ sandbox }: { sandbox: Sandbox }) {
  const [stream, setStream] = useState<"stdout" | "stderr">("stdout");
  useEffect(() => setStream("stdout"), [sandbox.id]);
  return (
    <>
      <div class="choices" role="group" aria-label="Stream">
        {(["stdout", "stderr"] as const).map((each) => (
          <button type="button" key={each} aria-pressed={each === stream} onClick={() => setStream(each)}>
            {each}
          </button>
        ))}
      </div>
      <Stream key={stream} path={`v1/sandboxes/${sandbox.id}/logs`} query={{ stream, follow: true }} label={stream} />
    </>
  );
}
