// Bars over time, stacked: with axes, a value for the bar under the pointer or chosen by the arrow keys, or as a table.
import { html, useEffect, useRef, useState } from "/console/vendor/htm-preact.js";
import { Table } from "/console/table.js";
import { whole } from "/console/numbers.js";

const HEIGHT = 190;
const EDGE = { left: 46, right: 8, top: 10, bottom: 24 };
const MOVES = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

export const short = (value) => Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);

// 0 and some round numbers above, the last of them not below `most`.
export function ticks(most, count = 4) {
  const rough = Math.max(most, 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough - 1e-9));
  return Array.from({ length: Math.ceil(Math.max(most, 1) / step) + 1 }, (_, at) => at * step);
}

// title: what is counted; series: [{name, kind: its colour's class}]; points: [{label, values: one for each series}].
export function Chart({ title, what, series, points }) {
  const [isTable, setIsTable] = useState(false);
  const [chosen, setChosen] = useState(null);
  const [width, setWidth] = useState(640);
  const box = useRef(null);
  useEffect(() => {
    if (!box.current) return undefined;
    const watch = new ResizeObserver(() => box.current && setWidth(Math.max(240, box.current.clientWidth)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, [isTable]);

  const sums = points.map((point) => point.values.reduce((total, value) => total + value, 0));
  const said = (point) => `${point.label}: ${series.map((one, at) => `${whole(point.values[at])} ${one.name}`).join(", ")}`;
  const all = series.map((one, at) => `${whole(points.reduce((total, point) => total + point.values[at], 0))} ${one.name}`).join(", ");
  const onKey = (event) => {
    const move = MOVES[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const from = chosen === null ? points.length : chosen;
    setChosen(Math.max(0, Math.min(points.length - 1, from + move)));
  };
  const onPoint = (event) => {
    const at = Math.floor(((event.clientX - box.current.getBoundingClientRect().left - EDGE.left) / (width - EDGE.left - EDGE.right)) * points.length);
    setChosen(at >= 0 && at < points.length ? at : null);
  };
  return html`<section class="chart"><div class="row"><h3>${title}</h3>
      <span class="legend">${series.map((one) => html`<span><svg width="10" height="10" aria-hidden="true"><rect class=${one.kind} width="10" height="10" /></svg> ${one.name}</span>`)}</span>
      <button class="quiet" aria-pressed=${isTable ? "true" : "false"} onClick=${() => setIsTable(!isTable)}>${isTable ? "Show as bars" : "Show as table"}</button></div>
    ${isTable
      ? html`<${Table} label=${title} rows=${points} idOf=${(p) => p.label} columns=${[{ name: what, of: (p) => p.label }, ...series.map((one, at) => ({ name: one.name, number: true, sort: (p) => p.values[at], of: (p) => whole(p.values[at]) }))]} />`
      : html`<div class="plot" ref=${box} tabindex="0" role="group" aria-label=${`${title}: ${all}. The arrow keys choose one ${what.toLowerCase()}.`}
          onKeyDown=${onKey} onPointerMove=${onPoint} onPointerLeave=${() => setChosen(null)}>
          <${Bars} ...${{ width, points, sums, series, chosen }} /></div>
        <p class="hint" role="status">${chosen === null ? `In all: ${all}` : said(points[chosen])}</p>`}</section>`;
}

function Bars({ width, points, sums, series, chosen }) {
  const marks = ticks(Math.max(...sums, 0));
  const top = marks.at(-1);
  const [inner, high] = [width - EDGE.left - EDGE.right, HEIGHT - EDGE.top - EDGE.bottom];
  const each = inner / points.length;
  const y = (value) => EDGE.top + high - (high * value) / top;
  const every = Math.ceil(points.length / Math.max(2, Math.floor(inner / 64))); // labels that have room
  return html`<svg width=${width} height=${HEIGHT} aria-hidden="true">
    ${marks.map((mark) => html`<line class="grid" x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(mark)} y2=${y(mark)} /><text class="tick" text-anchor="end" x=${EDGE.left - 6} y=${y(mark) + 4}>${short(mark)}</text>`)}
    ${points.map((point, at) => {
      const left = EDGE.left + at * each;
      let under = 0;
      return html`<g>${at === chosen && html`<rect class="chosen" x=${left} y=${EDGE.top} width=${each} height=${high} />`}
        ${series.map((one, of) => {
          const [from, to] = [under, (under += point.values[of])];
          return to > from && html`<rect class=${one.kind} x=${left + each * 0.12} width=${each * 0.76} y=${y(to)} height=${Math.max(1, y(from) - y(to))} />`;
        })}
        ${(points.length - 1 - at) % every === 0 && html`<text class="tick" text-anchor="middle" x=${Math.min(left + each / 2, width - 24)} y=${HEIGHT - 6}>${point.mark}</text>`}</g>`;
    })}</svg>`;
}
