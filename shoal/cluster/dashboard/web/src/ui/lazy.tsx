// Parts that are loaded where they are first shown: most pages need neither charts nor a terminal.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

export function lazy<P extends object>(load: () => Promise<{ default: ComponentType<P> }>): ComponentType<P> {
  let loaded: ComponentType<P> | null = null;
  return function Lazy(props: P) {
    const [Part, setPart] = useState<ComponentType<P> | null>(() => loaded);
    const [failed, setFailed] = useState(false);
    useEffect(() => {
      if (Part) return;
      load().then(
        (part) => {
          loaded = part.default;
          setPart(() => loaded);
        },
        () => setFailed(true),
      );
    }, []);
    if (failed) return <p role="alert">A part of this page was not loaded. Load the page again.</p>;
    return Part ? <Part {...props} /> : <div class="chart-place" />;
  };
}
