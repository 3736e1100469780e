// The frame around every page: who is signed in, in which environment, and which page the address names.
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { away, get, may, me, revision, signOut, whoAmI } from "./lib/api.ts";
import { useResource } from "./lib/resource.ts";
import { link, navigate, root, segments } from "./lib/router.ts";
import type { Environment } from "./lib/types.ts";
import { BuildPage } from "./pages/builds.tsx";
import { AuditPage, EnvironmentsPage, NodesPage, TokensPage } from "./pages/cluster.tsx";
import { ImagesPage, PoolsPage, SecretsPage } from "./pages/environment.tsx";
import { OverviewPage } from "./pages/overview.tsx";
import { RolloutPage, RolloutsPage, useRollouts } from "./pages/rollouts.tsx";
import { SandboxPage } from "./pages/sandbox.tsx";
import { SandboxesPage } from "./pages/sandboxes.tsx";
import { SignInPage } from "./pages/signin.tsx";
import { VolumePage, VolumesPage } from "./pages/volumes.tsx";
import { attempt, Empty, Notices } from "./ui/parts.tsx";

const KEPT = "shoal.environment";
const ROLLOUTS_MS = 10_000;

/** The environment of the address, else the one that was last looked at, else the token's. */
function environmentHere(): string {
  const token = me.value!;
  if (token.environment !== "*") return token.environment;
  if (segments.value[0] === "e" && segments.value[1]) return segments.value[1];
  return sessionStorage.getItem(KEPT) ?? "main";
}

export function App() {
  useEffect(() => {
    if (revision.value) void whoAmI();
  }, [revision.value]);
  return (
    <>
      {away.value !== null && (
        <div class="away" role="alert">
          The cluster does not answer. This page goes on by itself as soon as it does.
        </div>
      )}
      {me.value === undefined ? null : me.value === null ? <SignInPage /> : <Signed />}
      <Notices />
    </>
  );
}

interface PageOf {
  path: string;
  title: string;
  shown: () => boolean;
  /** Listed only where there are some. */
  wantsAny?: boolean;
  view: (environment: string, rest: string[]) => ComponentChildren;
}

const IN_ENVIRONMENT: PageOf[] = [
  { path: "overview", title: "Overview", shown: () => true, view: (environment) => <OverviewPage key={environment} environment={environment} /> },
  {
    path: "sandboxes",
    title: "Sandboxes",
    shown: () => true,
    view: (environment, rest) =>
      rest[0] ? <SandboxPage key={rest[0]} id={rest[0]} tab={rest[1]} /> : <SandboxesPage key={environment} environment={environment} />,
  },
  {
    path: "rollouts",
    title: "Rollouts",
    shown: () => true,
    wantsAny: true,
    view: (environment, rest) =>
      rest[0] ? <RolloutPage key={rest[0]} environment={environment} id={rest[0]} /> : <RolloutsPage key={environment} environment={environment} />,
  },
  { path: "pools", title: "Pools", shown: () => true, view: (environment) => <PoolsPage key={environment} environment={environment} /> },
  { path: "images", title: "Images", shown: () => true, view: (environment, rest) => (rest[0] === "builds" && rest[1] ? <BuildPage key={rest[1]} environment={environment} id={rest[1]} /> : <ImagesPage key={environment} environment={environment} />) },
  {
    path: "volumes",
    title: "Volumes",
    shown: () => true,
    view: (environment, rest) =>
      rest[0] ? <VolumePage key={environment + rest[0]} environment={environment} name={rest[0]} /> : <VolumesPage key={environment} environment={environment} />,
  },
  { path: "secrets", title: "Secrets", shown: () => true, view: (environment) => <SecretsPage key={environment} environment={environment} /> },
];

const OF_CLUSTER: PageOf[] = [
  { path: "nodes", title: "Nodes", shown: () => may("read", true), view: () => <NodesPage /> },
  { path: "environments", title: "Environments", shown: () => true, view: () => <EnvironmentsPage /> },
  { path: "tokens", title: "Tokens", shown: () => may("admin"), view: () => <TokensPage /> },
  { path: "audit", title: "Audit", shown: () => may("admin"), view: () => <AuditPage /> },
];

function Signed() {
  const environment = environmentHere();
  const [area, ...rest] = segments.value;
  useEffect(() => sessionStorage.setItem(KEPT, environment), [environment]);
  useEffect(() => {
    if (!area || area === "sign-in") navigate(link("e", environment, "sandboxes"), true);
    else if (area === "e" && rest[0] !== environment) navigate(link("e", environment, ...rest.slice(1)), true);
  }, [area, rest[0], environment]);

  const pages = area === "cluster" ? OF_CLUSTER : IN_ENVIRONMENT;
  const [name, ...more] = area === "cluster" ? rest : rest.slice(1);
  const page = pages.find((each) => each.path === (name ?? "sandboxes") && each.shown());
  useEffect(() => {
    document.title = page ? `${page.title} · Shoal` : "Shoal";
  }, [page]);
  return (
    <div class="frame">
      <a class="skip" href="#content">
        Skip to the content
      </a>
      <Sidebar environment={environment} current={page} />
      <main id="content" tabIndex={-1}>
        {page ? page.view(environment, more) : area ? <Empty title="There is no such page">The address names nothing that your token may see.</Empty> : null}
      </main>
    </div>
  );
}

function Sidebar({ environment, current }: { environment: string; current: PageOf | undefined }) {
  const [open, setOpen] = useState(false);
  const token = me.value!;
  const environments = useResource((signal) => get<{ environments: Environment[] }>("v1/environments", {}, signal), [token.id], 30_000);
  const names = [...new Set([environment, ...(environments.data?.environments ?? []).map((each) => each.name)])].sort();
  const rollouts = useRollouts(environment, ROLLOUTS_MS);
  const any = Boolean(rollouts.data?.rollouts.length);
  const items = (pages: PageOf[], ...before: string[]) =>
    pages
      .filter((page) => page.shown() && (!page.wantsAny || any || page === current))
      .map((page) => (
        <li key={page.path}>
          <a data-page href={link(...before, page.path)} aria-current={page === current ? "page" : undefined} onClick={() => setOpen(false)}>
            {page.title}
          </a>
        </li>
      ));
  return (
    <nav class={open ? "sidebar open" : "sidebar"} aria-label="Main">
      <div class="brand">
        <a data-page href={root} class="logo">
          <Mark />
          Shoal
        </a>
        <button type="button" class="menu quiet" aria-expanded={open} onClick={() => setOpen(!open)}>
          Menu
        </button>
      </div>
      <div class="sidebar-body">
        <label class="environment">
          <span>Environment</span>
          <select value={environment} disabled={token.environment !== "*"} onChange={(event) => navigate(link("e", event.currentTarget.value, "sandboxes"))}>
            {names.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <ul>{items(IN_ENVIRONMENT, "e", environment)}</ul>
        {OF_CLUSTER.some((page) => page.shown()) && (
          <>
            <h2>Cluster</h2>
            <ul>{items(OF_CLUSTER, "cluster")}</ul>
          </>
        )}
        <div class="who">
          <span title={token.id}>{token.name}</span>
          <span class="faint">
            {token.scope} in {token.environment === "*" ? "all environments" : token.environment}
          </span>
          <div class="who-links">
            <a href={`${root}docs`} target="_blank" rel="noreferrer">
              API
            </a>
            {token.id !== "cluster" && (
              <button type="button" class="quiet" onClick={() => void attempt(signOut)}>
                Sign out
              </button>
            )}
          </div>
        </div>
      </div>
    </nav>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <rect width="32" height="32" rx="7" class="mark" />
      <path d="M6 13c5-5 10 3 20-2M6 21c5-5 10 3 20-2" class="mark-lines" />
    </svg>
  );
}

