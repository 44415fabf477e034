// Keys: make one, see what it used, revoke it.
import { html, useState } from "/console/vendor/htm-preact.js";
import { order } from "/console/api.js";
import { Dialog, Empty, Note, Select, Sure, usePoll } from "/console/parts.js";
import { Table } from "/console/table.js";
import { moment, whole } from "/console/numbers.js";
import { useKept } from "/console/kept.js";
import { Usage } from "/console/pages/usage.js";

const SCOPES = [["inference", "use models"], ["metrics", "read metrics"], ["admin", "everything"]];
const DAY_S = 86400;

function Create({ onClose }) {
  const [given, setGiven] = useState({ name: "", days: "", models: "", scopes: ["inference"], priority: "normal", weight: "1" });
  const [state, setState] = useState({ busy: false, error: null, made: null });
  const set = (name) => (event) => setGiven({ ...given, [name]: event.target.value });
  const toggle = (scope) => () =>
    setGiven({ ...given, scopes: given.scopes.includes(scope) ? given.scopes.filter((s) => s !== scope) : [...given.scopes, scope] });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null, made: null });
    try {
      const body = { name: given.name.trim(), scopes: given.scopes, priority: given.priority, weight: Number(given.weight), models: given.models.split(/[\s,]+/).filter(Boolean) };
      if (given.days) body.expires_in_s = Number(given.days) * DAY_S;
      setState({ busy: false, error: null, made: await order("POST", "/api/v1/keys", body) });
    } catch (error) {
      setState({ busy: false, error, made: null });
    }
  };
  if (state.made)
    return html`<${Dialog} title="The new key" onClose=${onClose}><p>It is shown this once and kept nowhere.</p>
      <pre class="key" tabindex="0">${state.made.key}</pre>
      <div class="row"><button onClick=${() => navigator.clipboard?.writeText(state.made.key)}>Copy</button><button class="primary" onClick=${onClose}>I have it</button></div><//>`;
  return html`<${Dialog} title="Create a key" onClose=${onClose}><form onSubmit=${go}>
    <label>Name<input value=${given.name} maxlength="100" onInput=${set("name")} placeholder="who or what uses it" /></label>
    <fieldset><legend>May</legend>${SCOPES.map(([scope, told]) => html`<label><input type="checkbox" checked=${given.scopes.includes(scope)} onChange=${toggle(scope)} /> ${scope}: ${told}</label>`)}</fieldset>
    <label>Models (empty: all)<input value=${given.models} onInput=${set("models")} /></label>
    <label>Ends after, in days (empty: never)<input type="number" min="0.01" step="any" value=${given.days} onInput=${set("days")} /></label>
    <label>Share of a model that several keys wait for: one of 2 gets twice as much as one of 1
      <input type="number" min="0.01" max="100" step="any" required value=${given.weight} onInput=${set("weight")} /></label>
    <label>Priority: high goes before normal, normal before low<${Select} value=${given.priority} options=${["low", "normal", "high"]} onPick=${(priority) => setGiven({ ...given, priority })} /></label>
    <${Note} error=${state.error} />
    <div class="row"><button class="primary" disabled=${state.busy || !given.scopes.length}>Create</button><button type="button" onClick=${onClose}>Cancel</button></div>
  </form><//>`;
}

export function Keys({ who }) {
  const { data, error } = usePoll("/api/v1/keys", 3000);
  const usage = usePoll("/api/v1/usage?by=key", 5000);
  const [open, setOpen] = useState(null);
  const [shown, setShown] = useKept("usage", { key: "", by: "hour" });
  const show = (key) => {
    setShown({ ...shown, key });
    document.getElementById("usage").scrollIntoView({ block: "start" });
  };
  const used = new Map((usage.data?.usage || []).map((row) => [row.key_id, row]));
  const rows = data?.keys || [];
  const most = Math.max(1, ...[...used.values()].map((row) => row.prompt_tokens + row.completion_tokens));
  return html`<div class="row"><button class="primary" onClick=${() => setOpen({ what: "create" })}>Create a key</button></div>
    <${Note} error=${error || usage.error} /><div class="gap"></div>
    ${data && !rows.length && html`<${Empty}>There is no key.<//>`}
    ${rows.length > 0 && html`<${Table} label="Keys" rows=${rows} idOf=${(k) => k.key_id} columns=${[
      { name: "Key", sort: (k) => k.name, of: (k) => html`<strong>${k.name || "(no name)"}</strong><br /><span class="hint mono">${k.key_id} …${k.last_4}</span>` },
      { name: "May", sort: (k) => k.scopes.join(), of: (k) => html`${k.scopes.join(", ")}${(k.weight !== 1 || k.priority !== "normal") && html`<div class="hint">share ${k.weight}, ${k.priority}</div>`}` },
      { name: "Models", of: (k) => k.models.join(", ") || "all" },
      { name: "Made", keep: true, sort: (k) => k.created_at_s, of: (k) => moment(k.created_at_s) },
      { name: "Ends", sort: (k) => (k.revoked ? 0 : k.expires_at_s), of: (k) => (k.revoked ? "✕ revoked" : k.expires_at_s ? moment(k.expires_at_s) : "never") },
      { name: "Requests", sort: (k) => used.get(k.key_id)?.requests || 0, of: (k) => whole(used.get(k.key_id)?.requests || 0), number: true },
      { name: "Tokens in / out", sort: (k) => { const u = used.get(k.key_id); return u ? u.prompt_tokens + u.completion_tokens : null; }, of: (k) => { const u = used.get(k.key_id); return u ? html`${whole(u.prompt_tokens)} / ${whole(u.completion_tokens)}
          <div class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="decode" height="10" width=${(100 * (u.prompt_tokens + u.completion_tokens)) / most} /></svg></div>` : "–"; }, number: true },
      { name: "", of: (k) => html`<button aria-label=${`Usage of ${k.name || k.key_id}`} onClick=${() => show(k.key_id)}>Usage</button>` },
      { name: "", of: (k) => !k.revoked && k.key_id !== who.key_id && html`<button class="danger" aria-label=${`Revoke ${k.name || k.key_id}`} onClick=${() => setOpen({ what: "revoke", key: k })}>Revoke</button>` },
    ]} />`}
    ${data && html`<${Usage} keys=${rows.map((k) => [k.key_id, k.name || k.key_id])} chosen=${rows.some((k) => k.key_id === shown.key) ? shown.key : ""} by=${shown.by}
      onChoose=${(key) => setShown({ ...shown, key })} onSpan=${(by) => setShown({ ...shown, by })} />`}
    ${open?.what === "create" && html`<${Create} onClose=${() => setOpen(null)} />`}
    ${open?.what === "revoke" && html`<${Sure} title=${`Revoke ${open.key.name || open.key.key_id}?`} verb="Revoke" what="At once and for good: whoever uses it is refused."
      onYes=${() => order("DELETE", `/api/v1/keys/${open.key.key_id}`)} onNo=${() => setOpen(null)} />`}`;
}
