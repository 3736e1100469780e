import { useState } from "preact/hooks";
import { messageOf, signIn } from "../lib/api.ts";
import { Command } from "../ui/parts.tsx";

export function SignInPage() {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem(null);
    try {
      await signIn({ token });
    } catch (error) {
      setProblem(messageOf(error));
    }
    setBusy(false);
  };
  return (
    <main class="sign-in">
      <form onSubmit={(event) => void submit(event)}>
        <h1>Sign in to Shoal</h1>
        <label>
          <span>API token</span>
          <input
            type="password"
            name="token"
            autocomplete="current-password"
            placeholder="shoal_tk-…"
            required
            value={token}
            aria-describedby={problem ? "sign-in-problem" : undefined}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
        </label>
        {problem && (
          <p class="bad" id="sign-in-problem" role="alert">
            {problem}
          </p>
        )}
        <button type="submit" class="solid" disabled={busy}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
        <div class="hint">
          <p>Or open a link that signs you in once:</p>
          <Command text="shoal dashboard" />
          <p>A token of your own, which only reads:</p>
          <Command text="shoal tokens create my-browser --scope read" />
        </div>
      </form>
    </main>
  );
}
