// The form of a model, made from the descriptions of its engine's parameters.
import { html, useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask, order } from "/console/api.js";
import { Note, Select } from "/console/parts.js";
import { bytes } from "/console/numbers.js";
import { More, changedMore, moreOf } from "/console/pages/more.js";

const NUMBERS = new Set(["integer", "number"]);

// What stands in a field as the API wants it; undefined: left at its default. Throws a sentence.
export function read(parameter, text) {
  if (text === undefined || text === "" || text === null) {
    if (parameter.required) throw new Error(`${parameter.label || parameter.name} is needed.`);
    return undefined;
  }
  if (parameter.type === "boolean") return text === true || text === "true";
  if (!NUMBERS.has(parameter.type)) return text;
  const value = Number(text);
  const label = parameter.label || parameter.name;
  if (Number.isNaN(value) || (parameter.type === "integer" && !Number.isInteger(value)))
    throw new Error(`${label}: ${text} is no ${parameter.type === "integer" ? "whole number" : "number"}.`);
  if (parameter.minimum !== null && value < parameter.minimum) throw new Error(`${label}: at least ${parameter.minimum}.`);
  if (parameter.maximum !== null && value > parameter.maximum) throw new Error(`${label}: at most ${parameter.maximum}.`);
  return value;
}

function Field({ parameter, value, onInput }) {
  const { name, label, unit, help, type, valid_values: choices } = parameter;
  const common = { id: `p-${name}`, "aria-describedby": help ? `h-${name}` : undefined };
  const given = parameter.default === null || parameter.default === undefined ? "" : String(parameter.default);
  let field;
  if (type === "boolean" || choices) {
    const words = choices || ["true", "false"];
    field = html`<${Select} ...${common} value=${value ?? ""} onPick=${onInput}
      options=${[["", given ? `default: ${given}` : "default"], ...words.map(String)]} />`;
  } else {
    field = html`<input ...${common} type=${parameter.secret ? "password" : "text"} placeholder=${given} value=${value ?? ""}
      inputmode=${NUMBERS.has(type) ? "decimal" : undefined} onInput=${(e) => onInput(e.target.value)} />`;
  }
  return html`<div class="field"><label for=${`p-${name}`}>${label || name}${unit && html` <span class="unit">(${unit})</span>`}${parameter.required && " *"}</label>
    ${field}${help && html`<span class="help" id=${`h-${name}`}>${help}</span>`}</div>`;
}

// The values that stand in these parameters' fields, by name.
export function chosen(parameters, params) {
  const found = {};
  for (const parameter of parameters) {
    const value = read(parameter, params[parameter.name]);
    if (value !== undefined) found[parameter.name] = value;
  }
  return found;
}

export const Parameters = ({ engine, parameters, params, onChange, isOpen }) => html`<details open=${isOpen}>
  <summary>Parameters of ${engine} (${parameters.length})</summary>
  <div class="fields">${parameters.map((p) => html`<${Field} key=${p.name} parameter=${p} value=${params[p.name]}
    onInput=${(value) => onChange({ ...params, [p.name]: value })} />`)}</div></details>`;

const ENGINES = ["llama.cpp", "onnx", "openai", "python"];
const TYPES = ["llm", "text2vec", "reranker"];

export function StartForm({ onDone, onCancel }) {
  const [known, setKnown] = useState(null);
  const [picked, setPicked] = useState("");
  const [given, setGiven] = useState({ name: "", engine: "llama.cpp", worker_type: "llm", source: "", urls: "", replicas: "1", concurrency: "", aliases: "" });
  const [more, setMore] = useState(moreOf());
  const [params, setParams] = useState({});
  const [parameters, setParameters] = useState([]);
  const [state, setState] = useState({ busy: false, error: null });
  const set = (name) => (event) => setGiven({ ...given, [name]: event.target.value });
  const pick = (name) => (value) => setGiven({ ...given, [name]: value });
  const entry = known?.find((one) => one.model === picked);
  const engine = entry ? entry.engine : given.engine;

  useEffect(() => {
    ask("/api/v1/supported-models").then(
      (told) => { setKnown(told.models); setPicked(told.models[0]?.model || ""); },
      (error) => setState({ busy: false, error }),
    );
  }, []);
  useEffect(() => {
    let over = false;
    ask(`/api/v1/parameters?engine=${encodeURIComponent(engine)}`).then(
      (told) => !over && (setParameters(told.parameters), setParams({})),
      (error) => !over && (setParameters([]), setState({ busy: false, error })),
    );
    return () => { over = true; };
  }, [engine]);

  const start = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      const whole = (name) => read({ name, label: name, type: "integer", minimum: 1, maximum: null }, given[name]);
      const body = { model: entry ? entry.model : given.name.trim(), params: chosen(parameters, params), ...changedMore(more, moreOf()) };
      const aliases = given.aliases.split(/[\s,]+/).filter(Boolean);
      if (aliases.length) body.aliases = aliases;
      if (!entry) {
        Object.assign(body, { engine, worker_type: given.worker_type });
        if (given.source.trim()) body.source = given.source.trim();
        if (engine === "openai") body.urls = given.urls.split(/\s+/).filter(Boolean);
      }
      if (whole("replicas") !== undefined) body.replicas = whole("replicas");
      if (whole("concurrency") !== undefined) body.concurrency = whole("concurrency");
      await order("POST", "/api/v1/models", body);
      onDone(body.model);
    } catch (error) {
      setState({ busy: false, error });
    }
  };

  if (known === null && !state.error) return html`<p>Loading…</p>`;
  return html`<form onSubmit=${start} class="start">
    <label>Model<${Select} value=${picked} onPick=${setPicked}
      options=${[...(known || []).map((one) => [one.model, one.label || one.model]), ["", "From a source of your own…"]]} /></label>
    ${entry
      ? html`<p class="note">${entry.description} ${entry.license && html`Licence: ${entry.license}. `}
          ${entry.present ? "Its files are here." : `${bytes(entry.download_bytes)} to download.`} Needs about ${bytes(entry.memory_bytes)} of memory:
          <strong>${entry.fits === null ? "nobody knows whether it fits." : entry.fits ? "✓ fits this machine now." : "✕ does not fit this machine now."}</strong></p>`
      : html`<div class="fields">
          <label>Name *<input required value=${given.name} onInput=${set("name")} pattern="[A-Za-z0-9][A-Za-z0-9._/-]*" /></label>
          <label>What it does<${Select} value=${given.worker_type} options=${TYPES} onPick=${pick("worker_type")} /></label>
          <label>Engine<${Select} value=${given.engine} options=${ENGINES} onPick=${pick("engine")} /></label>
          ${given.engine === "openai"
            ? html`<label>Addresses of running servers<input value=${given.urls} onInput=${set("urls")} placeholder="http://10.0.0.7:8000/v1" /></label>`
            : html`<label>Source<input value=${given.source} onInput=${set("source")} placeholder="hf:…, https:…, wheel:… or a path" /></label>`}
        </div>`}
    <div class="fields">
      <label>Copies<input inputmode="numeric" value=${given.replicas} onInput=${set("replicas")} /></label>
      <label>Requests at once, each copy<input inputmode="numeric" placeholder="default" value=${given.concurrency} onInput=${set("concurrency")} /></label>
      <label>Other names<input value=${given.aliases} onInput=${set("aliases")} placeholder="gpt-4o-mini" /></label>
    </div>
    <${Parameters} engine=${engine} parameters=${parameters} params=${params} onChange=${setParams} />
    <${More} value=${more} onChange=${setMore} />
    <${Note} error=${state.error} />
    <div class="row"><button class="primary" disabled=${state.busy}>Start</button><button type="button" onClick=${onCancel}>Cancel</button></div>
  </form>`;
}
