// Bundles the dashboard into the directory that is named: index.html, and assets with digests in their names.
import { build } from "esbuild";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, basename } from "node:path";
import { gzipSync } from "node:zlib";

const out = process.argv[2];
const assets = join(out, "assets");
mkdirSync(assets, { recursive: true });

const { metafile } = await build({
  entryPoints: ["src/main.tsx"],
  bundle: true,
  splitting: true, // the terminal and the charts are loaded where they are shown
  format: "esm",
  target: ["es2022"],
  minify: true,
  metafile: true,
  legalComments: "none",
  jsx: "automatic",
  jsxImportSource: "preact",
  outdir: assets,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  logLevel: "warning",
});

const entry = Object.entries(metafile.outputs).find(([, made]) => made.entryPoint === "src/main.tsx");
const page = readFileSync("index.html", "utf8")
  .replace("%SCRIPT%", basename(entry[0]))
  .replace("%STYLE%", basename(entry[1].cssBundle));
writeFileSync(join(out, "index.html"), page);

for (const name of readdirSync(assets)) {
  writeFileSync(join(assets, `${name}.gz`), gzipSync(readFileSync(join(assets, name)), { level: 9 }));
}
