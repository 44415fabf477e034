// Models: what was asked for and how it stands; start, scale, change, restart, stop, forget, logs.
import { html, useState } from "/console/vendor/htm-preact.js";
import { modelPath, order } from "/console/api.js";
import { Dialog, Empty, Note, State, Sure, usePoll } from "/console/parts.js";
import { Table } from "/console/table.js";
import { Change } from "/console/pages/change.js";
import { StartForm } from "/console/pages/form.js";
import { Log } from "/console/pages/log.js";

// What the newest event says of a start that is under way: {name: {text, share}}.
function useProgress(isMoving) {
  const { data } = usePoll(isMoving ? "/api/v1/events?limit=60" : "/api/v1/events?limit=1", isMoving ? 1000 : 5000);
  const found = {};
  for (const event of data?.events || []) {
    if (!/progress$/.test(event.kind) || !event.model) continue;
    const { done_bytes: done, total_bytes: total, took_s: took, deadline_s: limit } = event.fields;
    found[event.model] = { text: event.message, share: total ? done / total : limit ? took / limit : null };
  }
  return found;
}

function Scale({ model, onClose }) {
  const [count, setCount] = useState(String(model.wanted));
  const [state, setState] = useState({ busy: false, error: null });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      const body = { model: model.name, worker_type: model.worker_type, apply_type: "update_params", replicas: Number(count) };
      const told = await order("POST", "/api/v1/apply", body);
      if (!told.success) throw new Error(told.message);
      onClose();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<${Dialog} title=${`Copies of ${model.name}`} onClose=${onClose}><form onSubmit=${go}>
    <label>How many<input type="number" min="1" max="1000" required value=${count} onInput=${(e) => setCount(e.target.value)} /></label>
    <${Note} error=${state.error}>${state.busy ? "Waiting until they are ready…" : null}<//>
    <div class="row"><button class="primary" disabled=${state.busy}>Scale</button><button type="button" onClick=${onClose}>Close</button></div>
  </form><//>`;
}

export function Models() {
  const { data, error } = usePoll("/api/v1/models", 1500);
  const [open, setOpen] = useState(null); // {what, model}
  const models = data?.models || [];
  const moving = models.filter((m) => m.wanted && m.ready < m.wanted);
  const progress = useProgress(moving.length > 0);
  const close = () => setOpen(null);
  const restart = (model) => async () => {
    const told = await order("POST", "/api/v1/apply", { model: model.name, worker_type: model.worker_type, apply_type: "restart" });
    if (!told.success) throw new Error(told.message);
  };
  const stop = (model, forget = "") => () =>
    order("DELETE", `${modelPath(model.name)}?worker_type=${model.worker_type}${forget}`);
  const again = (model) => () => order("POST", "/api/v1/models", { model: model.name, worker_type: model.worker_type });
  const button = (what, label, model) =>
    html`<button onClick=${() => setOpen({ what, model })} aria-label=${`${label} ${model.name}`}>${label}</button> `;
  return html`<div class="row"><button class="primary" onClick=${() => setOpen({ what: "start" })}>Start a model</button></div>
    <${Note} error=${error} />
    ${data && !models.length && html`<${Empty}>No model was asked for yet. Press <em>Start a model</em>: the catalogue has small ones that run on any CPU.<//>`}
    ${models.length > 0 && html`<div class="gap"></div><${Table} label="Models" rows=${models} idOf=${(m) => m.worker_key} columns=${[
      { name: "Model", cut: true, sort: (m) => m.name, size: 14, of: (m) => html`<strong>${m.name}</strong><br /><span class="hint">${m.worker_type}, ${m.deployment.engine}</span>` },
      { name: "Ready", sort: (m) => m.ready, size: 6, of: (m) => `${m.ready} of ${m.wanted}`, number: true },
      { name: "State", cut: true, sort: (m) => m.wanted - m.ready, size: 12, of: (m) => html`${m.wanted === 0 && !Object.keys(m.states).length && html`<${State} of="stopped" />`}${Object.entries(m.states).map(([state, count]) => html`<div>${count} <${State} of=${state} /></div>`)}
          ${m.ready < m.wanted && progress[m.name] && html`<span class="hint">${progress[m.name].text}</span>
            ${progress[m.name].share !== null && html`<progress max="1" value=${progress[m.name].share} aria-label=${`progress of ${m.name}`} />`}`}` },
      { name: "Reason", cut: true, sort: (m) => m.reason, size: 14, of: (m) => html`<span class="lines">${m.reason}</span>${m.notes.map((note) => html`<div class="hint">${note}</div>`)}` },
      { name: "Source", cut: true, size: 14, of: (m) => html`<span class="mono hint">${m.deployment.source || m.deployment.urls.join(" ")}</span>` },
      { name: "", size: 22, of: (m) => html`<div class="row">${m.wanted > 0 && html`${button("scale", "Scale", m)}${button("change", "Change", m)}${button("restart", "Restart", m)}${button("stop", "Stop", m)}`}
          ${m.wanted === 0 && html`${button("again", "Start", m)}${button("forget", "Forget", m)}`}
          ${button("logs", "Logs", m)}</div>` },
    ]} />`}
    ${open?.what === "start" && html`<${Dialog} title="Start a model" onClose=${close}><${StartForm} onDone=${close} onCancel=${close} /><//>`}
    ${open?.what === "scale" && html`<${Scale} model=${open.model} onClose=${close} />`}
    ${open?.what === "change" && html`<${Change} model=${open.model} onClose=${close} />`}
    ${open?.what === "restart" && html`<${Sure} title=${`Restart ${open.model.name}?`} verb="Restart" onYes=${restart(open.model)} onNo=${close}
      what="One copy after the other gets a fresh process; requests go to the others meanwhile." />`}
    ${open?.what === "stop" && html`<${Sure} title=${`Stop ${open.model.name}?`} verb="Stop" onYes=${stop(open.model)} onNo=${close}
      what="Requests that are under way may finish. New ones are refused until it is started again." />`}
    ${open?.what === "forget" && html`<${Sure} title=${`Forget ${open.model.name}?`} verb="Forget" onYes=${stop(open.model, "&delete=true")} onNo=${close}
      what="It is no model of this server any more; its files stay. What it was started with is gone." />`}
    ${open?.what === "again" && html`<${Sure} title=${`Start ${open.model.name} again?`} verb="Start" onYes=${again(open.model)} onNo=${close}
      what="As it was: the same source, parameters and number of copies." />`}
    ${open?.what === "logs" && html`<${Dialog} title=${`Logs of ${open.model.name}`} onClose=${close}>
      <${Log} path=${`${modelPath(open.model.name)}/logs`} />
      <div class="row"><button onClick=${close}>Close</button></div><//>`}`;
}
