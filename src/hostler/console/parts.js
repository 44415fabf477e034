// What several pages show: states, tables, notes, dialogs. Text is always text: nothing here makes HTML of data.
import { html, useEffect, useRef, useState } from "/console/vendor/htm-preact.js";
import { ask } from "/console/api.js";

const SHARE = 10; // a look that took long is followed by ten times as long a rest

// Ask again and again; {data, error}. A page that nobody sees asks nothing.
export function usePoll(path, everyMs = 2000) {
  const [state, setState] = useState({ data: null, error: null });
  useEffect(() => {
    let timer;
    let over = false;
    const stop = new AbortController();
    const look = async () => {
      const began = performance.now();
      try {
        if (!document.hidden) {
          const data = await ask(path, { signal: stop.signal });
          if (!over) setState({ data, error: null });
        }
      } catch (error) {
        if (!over && error.name !== "AbortError") setState((last) => ({ data: last.data, error }));
      }
      if (!over) timer = setTimeout(look, Math.max(everyMs, SHARE * (performance.now() - began)));
    };
    look();
    return () => {
      over = true;
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, everyMs]);
  return state;
}

const SIGNS = {
  ready: "●", alive: "●", ok: "●", "under way": "◐", starting: "◐", fetching: "◔", pending: "○", draining: "◒", serving: "●", leaving: "◒",
  suspect: "▲", unknown: "▲", failed: "✕", lost: "✕", error: "✕", client_error: "✕", upstream_error: "✕", stream_error: "✕", timeout: "✕", refused: "✕", client_gone: "■", stopped: "■", left: "■",
};

const BAD = new Set(["client_error", "upstream_error", "stream_error", "timeout", "refused"]);

export const State = ({ of }) => html`<span class=${`state ${BAD.has(of) ? "failed" : of}`}><span aria-hidden="true">${SIGNS[of] || "○"}</span> ${of}</span>`;

export const Note = ({ error, children }) =>
  error || children ? html`<p class=${error ? "note bad" : "note"} role=${error ? "alert" : "status"}>${error ? error.message : children}</p>` : null;

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

// A question before something is lost. It has the focus while it is there; Escape leaves it.
export function Dialog({ title, children, onClose }) {
  const box = useRef(null);
  useEffect(() => {
    const node = box.current;
    node.showModal();
    return () => node.close();
  }, []);
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onCancel=${(event) => { event.preventDefault(); onClose(); }}>
    <h2 id="dialog-title">${title}</h2>${children}</dialog>`;
}

export function Sure({ title, what, verb, onYes, onNo }) {
  const [state, setState] = useState({ busy: false, error: null });
  const yes = async () => {
    setState({ busy: true, error: null });
    try {
      await onYes();
      onNo();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<${Dialog} title=${title} onClose=${onNo}>
    <div>${what}</div><${Note} error=${state.error} />
    <div class="row"><button class=${verb === "Start" ? "primary" : "danger"} disabled=${state.busy} onClick=${yes}>${verb}</button>
      <button onClick=${onNo}>Cancel</button></div><//>`;
}

// One of several words, or of pairs [value, words for it].
export const Select = ({ value, options, onPick, ...more }) => html`<select ...${more} onChange=${(event) => onPick(event.target.value)}>
  ${options.map((one) => (Array.isArray(one) ? one : [one, one])).map(([worth, words]) => html`<option value=${worth} selected=${worth === value}>${words}</option>`)}</select>`;

// A line of the last minute or so.
export function Spark({ values, label }) {
  const top = Math.max(...values, 1e-9);
  const step = 100 / Math.max(values.length - 1, 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(23 - (22 * value) / top).toFixed(1)}`);
  return html`<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label=${label}>
    <polyline points=${points.join(" ")} fill="none" vector-effect="non-scaling-stroke" /></svg>`;
}
