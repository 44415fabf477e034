// Settings: what the server runs with, what each value does, who gave it. Read only.
import { html, useState } from "/console/vendor/htm-preact.js";
import { Empty, Note, usePoll } from "/console/parts.js";
import { moment } from "/console/numbers.js";

const WORDS = {
  default: () => "default",
  file: () => "config file",
  environment: (name) => `environment ${name}`,
  option: (name) => `option ${name}`,
  setting: (name) => `from ${name}`,
  program: () => "the program",
};

const originText = ({ kind, name = "", variables = [] }) =>
  WORDS[kind](name) + (variables.length ? ` (environment ${variables.join(", ")})` : "");

const valueText = (value) => {
  if (value === null || value === undefined) return "not set";
  return typeof value === "string" && value ? value : JSON.stringify(value);
};

function bySection(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.section, [...(found.get(row.section) || []), row]);
  return [...found];
}

const Row = ({ of: one }) => {
  const isDefault = one.origin.kind === "default";
  const last = one.section ? one.name.slice(one.section.length + 1) : one.name;
  return html`<tr>
    <th scope="row"><code>${last}</code>${one.about && html`<div class="hint">${one.about}</div>`}</th>
    <td><code class=${isDefault ? "" : "given"}>${valueText(one.value)}</code>${one.unit && one.value !== null ? ` ${one.unit}` : ""}
      ${one.secret && html`<div class="hint">a secret: not shown</div>`}
      ${!isDefault && !one.secret && one.default !== null && html`<div class="hint">default ${valueText(one.default)}</div>`}</td>
    <td>${originText(one.origin)}</td></tr>`;
};

export function Settings() {
  const { data, error } = usePoll("/api/v1/settings", 5000);
  const [wanted, setWanted] = useState("");
  const [isChanged, setIsChanged] = useState(false);
  const all = data?.settings || [];
  const words = wanted.toLowerCase();
  const rows = all.filter((one) =>
    `${one.name} ${one.about} ${originText(one.origin)} ${valueText(one.value)}`.toLowerCase().includes(words) && !(isChanged && one.origin.kind === "default"));
  return html`<${Note} error=${error} />
    ${data && html`<p>${data.file ? html`Config file <code class="path">${data.file}</code>, read ${moment(data.read_at_s)}.` : "No config file was given."}
      <span class="hint"> Change a value there, or by an option or the environment of <code>hostler up</code>.</span></p>
      ${(data.notes || []).map((note) => html`<p class="note warning" role="status"><span aria-hidden="true">▲</span> ${note}</p>`)}`}
    <div class="fields">
      <label>Search<input type="search" value=${wanted} onInput=${(e) => setWanted(e.target.value.trim())} placeholder="name, value, meaning or source" /></label>
      <label><input type="checkbox" checked=${isChanged} onChange=${(e) => setIsChanged(e.target.checked)} /> Only what is not the default</label>
    </div>
    ${data && html`<p class="hint" role="status">${rows.length} of ${all.length} settings</p>`}
    ${data && !rows.length && html`<${Empty}>No setting is like that.<//>`}
    ${bySection(rows).map(([section, some]) => html`<section key=${section}>
      <h2 id=${`s-${section}`}>${section || "General"}</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby=${`s-${section}`}>
        <table class="settings"><thead><tr><th scope="col">Setting</th><th scope="col">Value</th><th scope="col">Source</th></tr></thead>
          <tbody>${some.map((one) => html`<${Row} of=${one} key=${one.name} />`)}</tbody></table></div></section>`)}`;
}
