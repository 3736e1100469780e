import { render } from "preact";
import { App } from "./app.tsx";
import { messageOf, signIn, watchCluster, whoAmI } from "./lib/api.ts";
import { watchAddress } from "./lib/router.ts";
import { notify } from "./ui/parts.tsx";
import "./style.css";

const SIGN_IN = "#sign-in=";

/** Signs in with the code of a link like `/#sign-in=…`. */
async function followLink(): Promise<void> {
  if (!location.hash.startsWith(SIGN_IN)) return;
  const code = decodeURIComponent(location.hash.slice(SIGN_IN.length));
  history.replaceState(null, "", location.pathname + location.search); // the code is in no history and no bookmark
  try {
    await signIn({ code });
  } catch (error) {
    notify(messageOf(error), true);
  }
}

async function begin(): Promise<void> {
  watchAddress();
  addEventListener("hashchange", () => void followLink());
  await followLink();
  render(<App />, document.getElementById("app")!);
  watchCluster();
  await whoAmI();
}

void begin();
