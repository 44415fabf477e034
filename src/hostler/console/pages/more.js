// What a model may have beside its engine's parameters: where it runs, and rules as the API takes them.
import { html, useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask } from "/console/api.js";
import { Select } from "/console/parts.js";

const RULES = [
  ["routing", "Routing", "How its requests find their way: policy, stall_s, split, fallbacks…"],
  ["scaling", "Scaling", "Between which numbers of copies its load decides: min_replicas, max_replicas…"],
  ["labels", "Labels", "That a machine must have to run it."],
  ["resources", "Resources", "With Ray: what is held for each copy: cpus, gpus, bundles…"],
  ["runtime_env", "Environment", "With Ray: pip, env_vars, working_dir."],
];
const WHOLE = new Set(["labels"]); // given whole; of the others a rule alone may change

const pretty = (value) => (value && Object.keys(value).length ? JSON.stringify(value, null, 1) : "");

// What stands in the fields for this deployment, or for none yet.
export const moreOf = (deployment = {}) => ({
  host: deployment.host || "",
  ...Object.fromEntries(RULES.map(([name]) => [name, pretty(deployment[name])])),
});

// What of it is other than in `before`, as the API wants it. A rule that is gone is null: its default.
export function changedMore(given, before) {
  const found = given.host === before.host ? {} : { host: given.host };
  for (const [name, label] of RULES) {
    if (given[name].trim() === before[name].trim()) continue;
    const [now, old] = [given[name], before[name]].map((text) => readRules(label, text));
    if (WHOLE.has(name)) {
      found[name] = now;
      continue;
    }
    const gone = Object.keys(old).filter((rule) => !(rule in now)).map((rule) => [rule, null]);
    const other = Object.entries(now).filter(([rule, value]) => JSON.stringify(value) !== JSON.stringify(old[rule]));
    if (gone.length || other.length) found[name] = Object.fromEntries([...gone, ...other]);
  }
  return found;
}

function readRules(label, text) {
  let value;
  try {
    value = text.trim() ? JSON.parse(text) : {};
  } catch (error) {
    throw new Error(`${label}: this is no JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(`${label}: a JSON object is needed, like {"name": 1}.`);
  return value;
}

export function More({ value, onChange }) {
  const [hosts, setHosts] = useState([]);
  useEffect(() => {
    ask("/api/v1/hosts").then((told) => setHosts(told.hosts.filter((one) => one.role === "host").map((one) => one.facts.name)), () => setHosts([]));
  }, []);
  const names = [...new Set([...hosts, value.host].filter((name) => name && name !== "localhost"))];
  const set = (name) => (event) => onChange({ ...value, [name]: event.target.value });
  return html`<details><summary>Machine, routing, scaling</summary>
    <label>Machine<${Select} value=${value.host} onPick=${(host) => onChange({ ...value, host })}
      options=${[["", "any"], ["localhost", "the server's own"], ...names]} /></label>
    ${RULES.map(([name, label, help]) => html`<div class="field"><label for=${`m-${name}`}>${label} <span class="unit">(JSON)</span></label>
      <textarea id=${`m-${name}`} class="mono" rows=${Math.min(8, Math.max(2, value[name].split("\n").length))} spellcheck=${false}
        aria-describedby=${`mh-${name}`} value=${value[name]} onInput=${set(name)}></textarea><span class="help" id=${`mh-${name}`}>${help}</span></div>`)}</details>`;
}
