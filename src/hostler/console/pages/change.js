// Change a running model: its source, parameters and rules, one copy after the other.
import { html, useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask, modelPath, order } from "/console/api.js";
import { Dialog, Note } from "/console/parts.js";
import { Parameters, chosen, read } from "/console/pages/form.js";
import { More, changedMore, moreOf } from "/console/pages/more.js";

const HIDDEN = "***"; // what the server shows of a secret

const shown = (params) => Object.fromEntries(Object.entries(params).filter(([, value]) => value !== HIDDEN).map(([name, value]) => [name, String(value)]));

// As it is now: what the list said may be a moment old.
export function Change({ model, onClose }) {
  const [now, setNow] = useState({ was: null, error: null });
  useEffect(() => {
    ask(`${modelPath(model.name)}?worker_type=${model.worker_type}`).then(
      (told) => setNow({ was: told.deployment, error: null }),
      (error) => setNow({ was: null, error }),
    );
  }, []);
  return html`<${Dialog} title=${`Change ${model.name}`} onClose=${onClose}>
    ${now.was ? html`<${Form} model=${model} was=${now.was} onClose=${onClose} />` : html`<${Note} error=${now.error}>Loading…<//>`}<//>`;
}

function Form({ model, was, onClose }) {
  const [given, setGiven] = useState({ source: was.source, concurrency: String(was.concurrency) });
  const [before] = useState(shown(was.params || {}));
  const [params, setParams] = useState(before);
  const [more, setMore] = useState(moreOf(was));
  const [parameters, setParameters] = useState([]);
  const [state, setState] = useState({ busy: false, error: null, told: null });
  useEffect(() => {
    ask(`/api/v1/parameters?engine=${encodeURIComponent(was.engine)}`).then(
      (told) => setParameters(told.parameters),
      (error) => setState({ busy: false, error, told: null }),
    );
  }, []);

  const changes = () => {
    const found = changedMore(more, moreOf(was));
    const other = chosen(parameters.filter((p) => (params[p.name] ?? "") !== (before[p.name] ?? "")), params);
    for (const name of Object.keys(before)) if ((params[name] ?? "") === "") other[name] = null; // its default
    if (Object.keys(other).length) found.params = other;
    const slots = read({ name: "concurrency", label: "Requests at once", type: "integer", minimum: 1, maximum: null, required: true }, given.concurrency);
    if (slots !== was.concurrency) found.concurrency = slots;
    if (given.source.trim() !== was.source) found.source = given.source.trim();
    return found;
  };
  const go = async (event) => {
    event.preventDefault();
    try {
      const body = changes();
      if (!Object.keys(body).length) throw new Error("Nothing is other than it was.");
      setState({ busy: true, error: null, told: null });
      const told = await order("POST", "/api/v1/apply", { model: model.name, worker_type: model.worker_type, apply_type: "update_params", ...body });
      if (!told.success) throw new Error(told.message);
      if (!told.notes?.length) return onClose();
      setState({ busy: false, error: null, told: told.notes.join(" ") });
    } catch (error) {
      setState({ busy: false, error, told: null });
    }
  };
  return html`<form onSubmit=${go} class="start">
    <p class="hint">Copies get a fresh process one after the other where a change needs one. If it does not start with a change, it goes on as it was.</p>
    ${was.source && html`<label>Source<input class="mono" value=${given.source} onInput=${(e) => setGiven({ ...given, source: e.target.value })} /></label>`}
    <label>Requests at once, each copy<input inputmode="numeric" value=${given.concurrency} onInput=${(e) => setGiven({ ...given, concurrency: e.target.value })} /></label>
    <${Parameters} engine=${was.engine} parameters=${parameters} params=${params} onChange=${setParams} isOpen=${true} />
    <${More} value=${more} onChange=${setMore} />
    <${Note} error=${state.error}>${state.busy ? "Under way: new processes load before old ones leave…" : state.told}<//>
    <div class="row"><button class="primary" disabled=${state.busy}>Change</button><button type="button" onClick=${onClose}>${state.busy || state.told ? "Close" : "Cancel"}</button></div>
  </form>`;
}
