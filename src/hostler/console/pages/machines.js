// Machines: those that joined, who may join, and the gateway processes of the server.
import { html, useState } from "/console/vendor/htm-preact.js";
import { order } from "/console/api.js";
import { Dialog, Empty, Note, Select, State, Sure, usePoll } from "/console/parts.js";
import { Table } from "/console/table.js";
import { bytes, moment, span } from "/console/numbers.js";

const ROLES = [["host", "host: models are started there"], ["worker", "worker: it brings one model"], ["gateway", "gateway: it serves users"]];
const HOUR_S = 3600;
const GONE = new Set(["lost", "left"]);

const hostPath = (host) => `/api/v1/hosts/${encodeURIComponent(host.host_id)}`;
const usesLeft = (token) => (token.uses_left === null ? "any number" : token.uses_left);

function LetIn({ onClose }) {
  const [given, setGiven] = useState({ role: "host", name: "", uses: "1", hours: "24" });
  const [state, setState] = useState({ busy: false, error: null, made: null });
  const set = (name) => (event) => setGiven({ ...given, [name]: event.target.value });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null, made: null });
    try {
      const body = { role: given.role, name: given.name.trim(), uses: Number(given.uses), expires_in_s: Number(given.hours) * HOUR_S };
      setState({ busy: false, error: null, made: await order("POST", "/api/v1/tokens", body) });
    } catch (error) {
      setState({ busy: false, error, made: null });
    }
  };
  if (state.made)
    return html`<${Dialog} title="Run this on the machine" onClose=${onClose}>
      <p>The token in it is shown this once, and lets in until ${moment(state.made.info.expires_at_s)}.</p>
      <pre class="key" tabindex="0">${state.made.command}</pre>
      <div class="row"><button onClick=${() => navigator.clipboard?.writeText(state.made.command)}>Copy</button><button class="primary" onClick=${onClose}>Done</button></div><//>`;
  return html`<${Dialog} title="Let a machine in" onClose=${onClose}><form onSubmit=${go}>
    <label>What it is for<${Select} value=${given.role} options=${ROLES} onPick=${(role) => setGiven({ ...given, role })} /></label>
    <label>Name of the token<input value=${given.name} maxlength="100" onInput=${set("name")} placeholder="so that you know it again" /></label>
    <label>Machines that may join with it (0: any number)<input type="number" min="0" max="100000" required value=${given.uses} onInput=${set("uses")} /></label>
    <label>For how long, in hours<input type="number" min="0.01" step="any" required value=${given.hours} onInput=${set("hours")} /></label>
    <${Note} error=${state.error} />
    <div class="row"><button class="primary" disabled=${state.busy}>Make a token</button><button type="button" onClick=${onClose}>Cancel</button></div>
  </form><//>`;
}

function Hosts({ hosts, onAsk }) {
  const button = (what, label, host) => html`<button class=${what === "remove" ? "danger" : ""} onClick=${() => onAsk({ what, host })} aria-label=${`${label} ${host.facts.name}`}>${label}</button> `;
  return html`<${Table} label="Machines" rows=${hosts} idOf=${(h) => h.host_id} columns=${[
    { name: "Machine", sort: (h) => h.facts.name, size: 12, of: (h) => html`<strong>${h.facts.name}</strong><br /><span class="hint mono">${h.address ? `${h.address}:${h.port}` : h.host_id}</span>` },
    { name: "Is", sort: (h) => h.role, size: 6, of: (h) => h.role },
    { name: "State", sort: (h) => h.standing, size: 9, of: (h) => html`<${State} of=${h.standing} />${h.heard_s !== null && html`<div class="hint">heard ${span(h.heard_s)} ago</div>`}` },
    { name: "Load / CPUs", sort: (h) => h.facts.load_1m / h.facts.cpus, size: 7, of: (h) => `${h.facts.load_1m ?? "–"} / ${h.facts.cpus}`, number: true },
    { name: "Memory free", sort: (h) => h.facts.memory_free_bytes, size: 9, of: (h) => html`${bytes(h.facts.memory_free_bytes)}<div class="hint">of ${bytes(h.facts.memory_bytes)}</div>`, number: true },
    { name: "GPUs", size: 8, of: (h) => h.facts.gpus.join(", ") || "–" },
    { name: "Labels", size: 9, of: (h) => Object.entries(h.facts.labels).map(([name, value]) => html`<div class="mono">${name}=${value}</div>`) },
    { name: "Instances", sort: (h) => h.instances, size: 6, of: (h) => h.instances, number: true },
    { name: "Busy", sort: (h) => h.in_flight, size: 5, of: (h) => h.in_flight, number: true },
    { name: "", size: 12, of: (h) => html`<div class="row">${h.role === "host" && !GONE.has(h.standing) && (h.standing === "draining" ? button("undrain", "Use again", h) : button("drain", "Drain", h))}${button("remove", "Remove", h)}</div>` },
  ]} />`;
}

function Remove({ host, onClose }) {
  const [force, setForce] = useState(false);
  return html`<${Sure} title=${`Remove ${host.facts.name}?`} verb="Remove" onNo=${onClose} onYes=${() => order("DELETE", `${hostPath(host)}?force=${force}`)}
    what=${html`Its certificate is worth nothing from now on; to come back it needs a new token.
      ${host.instances > 0 && html`<label class="check"><input type="checkbox" checked=${force} onChange=${() => setForce(!force)} /> Although it has ${host.instances} instances: give them up</label>`}`} />`;
}

export function Machines() {
  const hosts = usePoll("/api/v1/hosts", 2000);
  const tokens = usePoll("/api/v1/tokens", 4000);
  const gateways = usePoll("/api/v1/gateways", 3000);
  const [open, setOpen] = useState(null);
  const close = () => setOpen(null);
  const drain = (host, draining) => () => order("POST", `${hostPath(host)}/drain`, { draining });
  const letIn = (tokens.data?.tokens || []).filter((one) => !one.revoked && one.uses_left !== 0 && one.expires_at_s * 1000 > Date.now());
  const running = gateways.data?.gateways || [];
  return html`<div class="row"><button class="primary" onClick=${() => setOpen({ what: "letIn" })}>Let a machine in</button></div>
    <${Note} error=${hosts.error} />
    ${hosts.data && !hosts.data.hosts.length && html`<div class="gap"></div><${Empty}>Only the server's own machine works here. A server that was started with <code>--tls</code> lets others in: press <em>Let a machine in</em>.<//>`}
    ${hosts.data?.hosts.length > 0 && html`<div class="gap"></div><${Hosts} hosts=${hosts.data.hosts} onAsk=${setOpen} />`}
    <h2>Tokens that let machines in</h2><${Note} error=${tokens.error} />
    ${letIn.length ? html`<${Table} label="Join tokens" rows=${letIn} idOf=${(t) => t.token_id} columns=${[
      { name: "Token", size: 12, of: (t) => html`<strong>${t.name || "(no name)"}</strong><br /><span class="hint mono">${t.token_id}</span>` },
      { name: "For", size: 6, of: (t) => t.role },
      { name: "Machines left", size: 8, of: usesLeft, number: true },
      { name: "Until", size: 12, of: (t) => moment(t.expires_at_s) },
      { name: "", size: 8, of: (t) => html`<button class="danger" aria-label=${`Revoke ${t.name || t.token_id}`} onClick=${() => setOpen({ what: "revoke", token: t })}>Revoke</button>` },
    ]} />` : tokens.data && html`<p class="hint">None now.</p>`}
    <h2>Gateway processes</h2><${Note} error=${gateways.error}>${gateways.data?.notes.join(" ")}<//>
    ${running.length > 0 && html`<${Table} label="Gateway processes" rows=${running} idOf=${(g) => g.pid} columns=${[
      { name: "Number", size: 5, of: (g) => g.number, number: true },
      { name: "State", size: 8, of: (g) => html`<${State} of=${g.state} />` },
      { name: "Process", size: 6, of: (g) => g.pid, number: true },
      { name: "Since", size: 12, of: (g) => moment(g.started_at_s) },
    ]} /><div class="gap"></div><div class="row"><button onClick=${() => setOpen({ what: "renew" })}>Renew the gateways</button></div>`}
    ${open?.what === "letIn" && html`<${LetIn} onClose=${close} />`}
    ${open?.what === "drain" && html`<${Sure} title=${`Drain ${open.host.facts.name}?`} verb="Drain" onYes=${drain(open.host, true)} onNo=${close} what="It gets nothing new, and what it has moves elsewhere, one by one." />`}
    ${open?.what === "undrain" && html`<${Sure} title=${`Use ${open.host.facts.name} again?`} verb="Use again" onYes=${drain(open.host, false)} onNo=${close} what="It takes instances again. Nothing moves back by itself." />`}
    ${open?.what === "remove" && html`<${Remove} host=${open.host} onClose=${close} />`}
    ${open?.what === "revoke" && html`<${Sure} title=${`Revoke ${open.token.name || open.token.token_id}?`} verb="Revoke" onYes=${() => order("DELETE", `/api/v1/tokens/${open.token.token_id}`)} onNo=${close}
      what="It lets nobody in any more. Machines that joined with it stay." />`}
    ${open?.what === "renew" && html`<${Sure} title="Renew the gateways?" verb="Renew" onYes=${() => order("POST", "/api/v1/gateways/restart")} onNo=${close}
      what="A fresh process takes the place of each, with the settings as they are now. No connection is lost." />`}`;
}
