// Tables, of ten rows or ten thousand: of a long one only the rows in view, and some beside them, are in the page.
import { Component, html, useLayoutEffect, useMemo, useRef, useState } from "/console/vendor/htm-preact.js";
import { useKept } from "/console/kept.js";
import { whole } from "/console/numbers.js";

const LONG = 100; // rows from which on a table has a window
const SPARE = 6; // rows above and below what is in view, for a quick thumb and for Tab
const STEP = 6; // the window moves by so many rows
const SIZE = 8; // of a column that says none, in rem
// Where a key leads: from the rows' top in view, by what is in view but for the head and a row, in all of it.
const LEAPS = {
  Home: () => 0,
  End: (top, page, all) => all,
  PageUp: (top, page) => top - page,
  PageDown: (top, page) => top + page,
};

// columns: [{name, of: row -> cell, number, sort: row -> what it is ordered by, size: rem in a long table,
// cut: there, what does not fit is cut; keep: in a short one it stands on one line}].
// idOf: row -> what it is known by from one look to the next.
// Roles are said: of a long table, and on a phone, where each row is a card, the layout is none of a table.
export function Table({ columns, rows, label, idOf }) {
  const [sort, setSort] = useKept(`sort:${label}`, null);
  const ordered = useMemo(() => inOrder(rows, columns, sort), [rows, sort]);
  const isLong = ordered.length > LONG;
  const style = isLong ? sizesOf(columns) : {};
  const { box, shown, abovePx, belowPx, ...handlers } = useWindow(ordered, isLong, idOf, !sort);
  return html`${!isLong && ordered.length > 1 && html`<${Order} columns=${columns} sort=${sort} onSort=${setSort} />`}
    <div class=${isLong ? "scroll tall" : "scroll"} tabindex="0" role="region" aria-label=${label} ref=${box} ...${handlers}>
      <table class=${isLong ? "windowed" : "rows"} role="table" aria-rowcount=${isLong ? ordered.length + 1 : undefined} style=${style}>
        <thead role="rowgroup"><tr role="row" aria-rowindex=${isLong ? 1 : undefined}>${columns.map((c) => html`<${Head} column=${c} sort=${sort} onSort=${setSort} />`)}</tr></thead>
        ${isLong && html`<${Spacer} key="above" heightPx=${abovePx} />`}
        <tbody key="rows" role="rowgroup">${shown.map((at) => html`<${Row} key=${idOf ? idOf(ordered[at]) : at} row=${ordered[at]} at=${at} columns=${columns} isLong=${isLong} />`)}</tbody>
        ${isLong && html`<${Spacer} key="below" heightPx=${belowPx} />`}
      </table></div>
    ${isLong && html`<p class="hint count">${whole(ordered.length)} rows</p>`}`;
}

const Spacer = ({ heightPx }) => html`<tbody aria-hidden="true" style=${{ height: `${heightPx}px` }}></tbody>`;

// Each row is a grid of these columns: what is left over is shared out by their sizes.
const sizesOf = (columns) => ({
  "--columns": columns.map((c) => `minmax(${c.size || SIZE}rem, ${c.size || SIZE}fr)`).join(" "),
  minWidth: `${columns.reduce((total, c) => total + (c.size || SIZE), 0)}rem`,
});

// On a phone, where the heads of the columns are not there.
function Order({ columns, sort, onSort }) {
  const able = columns.filter((c) => c.sort);
  const ways = able.flatMap((c) => [["ascending", "▲"], ["descending", "▼"]].map(([way, sign]) => [`${way} ${c.name}`, `${c.name} ${sign}`]));
  const pick = (event) => {
    const [, way, by] = /^(\w+) (.*)$/.exec(event.target.value) || [];
    onSort(way ? { by, way } : null);
  };
  return able.length > 0 && html`<label class="order">Order<select onChange=${pick}>
    ${[["", "as it comes"], ...ways].map(([value, words]) => html`<option value=${value} selected=${value === (sort ? `${sort.way} ${sort.by}` : "")}>${words}</option>`)}</select></label>`;
}

// A click orders by this column, a second one the other way round, a third one as it came.
function Head({ column, sort, onSort }) {
  const { name, number } = column;
  const way = sort?.by === name ? sort.way : undefined;
  const first = number ? "descending" : "ascending";
  const other = number ? "ascending" : "descending";
  const turn = () => onSort(way === undefined ? { by: name, way: first } : way === first ? { by: name, way: other } : null);
  return html`<th scope="col" role="columnheader" class=${number ? "number" : ""} aria-sort=${way}>${column.sort
    ? html`<button class="sort" onClick=${turn}>${name}<span aria-hidden="true"> ${way === "ascending" ? "▲" : way === "descending" ? "▼" : "↕"}</span></button>`
    : name}</th>`;
}

const classOf = (column) => ["number", "cut", "keep"].filter((name) => column[name]).join(" ");

class Row extends Component {
  shouldComponentUpdate(next) {
    return ["row", "at", "columns", "isLong"].some((name) => next[name] !== this.props[name]);
  }

  render({ row, at, columns, isLong }) {
    return html`<tr data-at=${at} role="row" aria-rowindex=${isLong ? at + 2 : undefined}>
      ${columns.map((c) => html`<td role="cell" data-name=${c.name} class=${classOf(c)}>${isLong ? c.of(row) : html`<div>${c.of(row)}</div>`}</td>`)}</tr>`;
  }
}

// What has no value stands last, whichever way.
function inOrder(rows, columns, sort) {
  const column = sort && columns.find((c) => c.name === sort.by && c.sort);
  if (!column) return rows;
  const sign = sort.way === "ascending" ? 1 : -1;
  const pairs = rows.map((row, at) => {
    const worth = column.sort(row);
    return { row, at, worth: typeof worth === "string" ? worth.toLowerCase() : worth };
  });
  const isNone = (worth) => worth === null || worth === undefined || Number.isNaN(worth);
  pairs.sort((a, b) => {
    if (isNone(a.worth) || isNone(b.worth)) return isNone(a.worth) - isNone(b.worth) || a.at - b.at;
    return a.worth < b.worth ? -sign : a.worth > b.worth ? sign : a.at - b.at;
  });
  return pairs.map((pair) => pair.row);
}

// Which rows are in the page: those in view, some beside them, and the one that has the focus: far from its place it is
// kept at the edge of the others, out of view, so that the focus is not lost.
// staysPut: when rows come above, what is in view stays in view.
function useWindow(rows, isLong, idOf, staysPut) {
  const box = useRef(null);
  const [first, setFirst] = useState(0);
  const [view, setView] = useState({ rowPx: 42, count: 20 });
  const top = useRef(null); // {id, at} of the first row in view
  const held = useRef(null); // {id, node}: the row with the focus, and what has it there
  const isMaking = useRef(false); // a blur in between is none of the user's
  isMaking.current = true;

  const look = () => {
    const at = Math.max(0, Math.min(rows.length - 1, Math.floor(box.current.scrollTop / view.rowPx)));
    top.current = rows.length && idOf ? { id: idOf(rows[at]), at } : null;
    setFirst(Math.floor(at / STEP) * STEP);
  };

  useLayoutEffect(() => {
    if (!isLong) return undefined;
    const node = box.current;
    const measure = () => {
      const rowPx = node.querySelector("tr[data-at]")?.getBoundingClientRect().height || view.rowPx;
      const count = Math.ceil(node.clientHeight / rowPx) + 1;
      setView((last) => (Math.abs(last.rowPx - rowPx) < 0.01 && last.count === count ? last : { rowPx, count }));
    };
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(node);
    return () => watch.disconnect();
  }, [isLong]);

  useLayoutEffect(() => {
    if (!isLong) return;
    const was = top.current;
    if (staysPut && was && was.at > 0 && idOf) {
      const at = rows.findIndex((row) => idOf(row) === was.id);
      if (at >= 0 && at !== was.at) box.current.scrollTop += (at - was.at) * view.rowPx;
    }
    look();
  }, [rows, isLong, view]);

  useLayoutEffect(() => {
    isMaking.current = false;
    const node = held.current?.node;
    if (node && document.activeElement !== node && box.current.contains(node)) node.focus({ preventScroll: true });
  });

  const shown = [];
  let [from, to] = [0, rows.length];
  if (!isLong) for (let at = 0; at < rows.length; at += 1) shown.push(at);
  else {
    from = Math.max(0, Math.min(first, rows.length - view.count) - SPARE);
    to = Math.min(rows.length, from + view.count + STEP + 2 * SPARE);
    for (let at = from; at < to; at += 1) shown.push(at);
    if (held.current !== null && idOf) {
      const at = rows.findIndex((row) => idOf(row) === held.current.id);
      if (at >= 0 && at < from) shown.unshift(at);
      else if (at >= to) shown.push(at);
    }
  }
  const hold = (event) => {
    const row = event.target.closest("tr[data-at]");
    held.current = row && idOf ? { id: idOf(rows[Number(row.dataset.at)]), node: event.target } : null;
  };
  const letGo = () => {
    if (!isMaking.current) held.current = null;
  };
  // At once: the browser's own way there takes a moment, and on a busy machine now and then ends where it began.
  const leap = (event) => {
    const node = box.current;
    const way = LEAPS[event.key];
    if (!way || event.target !== node || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    node.scrollTop = way(node.scrollTop, node.clientHeight - 2 * view.rowPx, node.scrollHeight);
  };
  const isHeldAbove = shown[0] < from;
  const isHeldBelow = shown.at(-1) >= to;
  const abovePx = Math.max(0, from - isHeldAbove) * view.rowPx;
  const belowPx = Math.max(0, rows.length - to - isHeldBelow) * view.rowPx;
  const turns = isLong ? { onScroll: look, onKeyDown: leap } : {};
  return { box, shown, abovePx, belowPx, ...turns, onFocusCapture: hold, onBlurCapture: letGo };
}
