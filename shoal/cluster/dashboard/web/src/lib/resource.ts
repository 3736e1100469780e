// What a view shows of the API: loaded, loaded anew, and kept while it is loaded anew.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem, revision } from "./api.ts";

export interface Resource<T> {
  data: T | undefined;
  error: Problem | undefined;
  loading: boolean;
  reload: () => void;
  change: (by: (data: T) => T) => void;
}

/** `load` runs when one of `inputs` changes, every `every` milliseconds while the page is seen, and once the cluster is
 * back after it was away. Of several at once the latest counts. */
export function useResource<T>(load: (signal: AbortSignal) => Promise<T>, inputs: unknown[], every?: number): Resource<T> {
  const [state, setState] = useState<{ data?: T; error?: Problem; loading: boolean }>({ loading: true });
  const [turn, setTurn] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  const back = revision.value;
  const key = JSON.stringify(inputs);
  const shown = useRef(key);
  const busy = useRef(false);

  useEffect(() => {
    const abort = new AbortController();
    const other = shown.current !== key;
    shown.current = key;
    setState((before) => ({ ...before, data: other ? undefined : before.data, loading: true }));
    busy.current = true;
    latest.current(abort.signal).then(
      (data) => {
        if (abort.signal.aborted) return;
        busy.current = false;
        setState({ data, loading: false });
      },
      (error: unknown) => {
        if (abort.signal.aborted) return;
        busy.current = false;
        const problem = error instanceof Problem ? error : new Problem(0, "defect", String(error));
        // While the cluster is away, what was known stays on the page.
        setState((before) => ({ data: before.data, error: problem.away && before.data ? undefined : problem, loading: false }));
      },
    );
    return () => abort.abort();
  }, [key, turn, back]);

  useEffect(() => {
    if (!every) return;
    // An answer that takes longer than that is waited for.
    const timer = setInterval(() => document.hidden || busy.current || setTurn((n) => n + 1), every);
    return () => clearInterval(timer);
  }, [every]);

  const reload = useCallback(() => setTurn((n) => n + 1), []);
  const change = useCallback(
    (by: (data: T) => T) => setState((s) => (s.data === undefined ? s : { ...s, data: by(s.data) })),
    [],
  );
  return { data: state.data, error: state.error, loading: state.loading, reload, change };
}
