// A small chart of figures over time, or over a number of items.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Line {
  label: string;
  values: (number | null)[];
}

interface Props {
  title: string;
  at: number[];
  lines: Line[];
  shown: (value: number) => string;
  height?: number;
  over?: "time" | "items";
}

const COLOURS = ["--chart-1", "--chart-2", "--chart-3", "--chart-4", "--chart-5", "--chart-6"];
const colour = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export default function Chart({ title, at, lines, shown, height = 120, over = "time" }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const format = useRef(shown);
  format.current = shown;
  const labels = lines.map((line) => line.label).join("|");

  useEffect(() => {
    const element = place.current!;
    const make = () => {
      plot.current?.destroy();
      const grid = { stroke: colour("--line"), width: 1 };
      const axis = { stroke: colour("--faint"), grid, ticks: { show: false }, font: "11px system-ui" };
      const data = plot.current?.data ?? dataOf(at, lines);
      plot.current = new uPlot(
        {
          width: Math.max(60, element.clientWidth),
          height,
          legend: { show: false },
          cursor: { y: false, points: { show: false } },
          padding: [8, 32, 0, 0], // half of the last time, in the widest way to write it
          scales: {
            x: over === "time" ? { range: (_, from, to) => spread(from, to) } : { time: false, range: (_, __, to) => [0, Math.max(1, to ?? 1)] },
            y: { range: (_, least, most) => bounds(least, most) },
          },
          axes: [
            { ...axis, size: 24, space: 70, values: (_, ticks) => ticks.map(over === "time" ? clock : (tick) => tick.toLocaleString("en")) },
            { ...axis, size: 58, space: 28, values: (_, ticks) => ticks.map((tick) => format.current(tick)) },
          ],
          series: [
            {},
            ...labels.split("|").map((label, index) => ({
              label,
              stroke: colour(COLOURS[index % COLOURS.length]!),
              width: 1.5,
              spanGaps: false,
            })),
          ],
        },
        data,
        element,
      );
    };
    make();
    const sizes = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(60, element.clientWidth), height }));
    sizes.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    return () => {
      dark.removeEventListener("change", make);
      sizes.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [labels, height, over]);

  useEffect(() => plot.current?.setData(dataOf(at, lines)), [at, lines]);

  const newest = (line: Line) => line.values.findLast((value) => value !== null && value !== undefined);
  const told = lines.map((line) => ({ label: line.label, value: newest(line) }));
  const text = told.map((each) => `${each.label} ${each.value === undefined || each.value === null ? "–" : shown(each.value)}`).join(", ");
  return (
    <figure class="chart">
      <figcaption>
        <h2>{title}</h2>
        <ul>
          {told.map((each, index) => (
            <li key={each.label}>
              <i class={`key key-${index % COLOURS.length}`} aria-hidden="true" />
              {each.label} <b>{each.value === undefined || each.value === null ? "–" : shown(each.value)}</b>
            </li>
          ))}
        </ul>
      </figcaption>
      <div ref={place} role="img" aria-label={`${title}: ${text}`} />
    </figure>
  );
}

const LEAST_S = 300;

/** At least five minutes, the newest point at the right. */
function spread(from: number | null, to: number | null): [number, number] {
  const end = to ?? Date.now() / 1000;
  return [Math.min(from ?? end, end - LEAST_S), end];
}

/** From 0, or from below it where figures are. */
function bounds(least: number | null, most: number | null): [number, number] {
  const [low, high] = [Math.min(0, least ?? 0), Math.max(0, most ?? 0)];
  return [low * 1.1, high > 0 ? high * 1.1 : low < 0 ? 0 : 1];
}

const clock = (tick: number) => new Date(tick * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** A point alone is drawn at the right, too: uPlot would give it a day of its own. */
function dataOf(at: number[], lines: Line[]): uPlot.AlignedData {
  const alone = at.length === 1;
  const x = alone ? [Math.max(0, at[0]! - LEAST_S), at[0]!] : at;
  return [x, ...lines.map((line) => (alone ? [null, line.values[0]] : line.values))] as uPlot.AlignedData;
}
