// Overview: how many, how fast, how full, now. Rates are of all gateways of this server, from the requests they remember.
import { html, useMemo } from "/console/vendor/htm-preact.js";
import { Empty, Note, Spark, State, usePoll } from "/console/parts.js";
import { Table } from "/console/table.js";
import { useRequests } from "/console/feed.js";
import { paceOf, pacesOf } from "/console/pace.js";
import { bytes, rate, span, whole } from "/console/numbers.js";

const Card = ({ title, children }) => html`<section class="card"><h3>${title}</h3>${children}</section>`;
const both = (pace) => (pace?.p50 === null || pace?.p50 === undefined ? "–" : `${span(pace.p50)} / ${span(pace.p99)}`);
const sumOf = (rows, name) => rows.reduce((total, row) => total + (row[name] || 0), 0);

const groups = (rows, name) => {
  const by = new Map();
  for (const row of rows) {
    if (!by.has(row[name])) by.set(row[name], []);
    by.get(row[name]).push(row);
  }
  return by;
};

// The pace of all, now and before, and of each model now.
function usePaces() {
  const { rows, atS, fromS, silent, isShort, isKnown, error } = useRequests();
  const found = useMemo(() => {
    if (!isKnown) return { history: [], now: null, models: new Map() };
    const by = groups(rows, "model");
    return {
      history: pacesOf(rows, atS, fromS),
      now: paceOf(rows, atS, fromS),
      models: new Map([...by].map(([name, mine]) => [name, paceOf(mine, atS, fromS)])),
    };
  }, [rows, atS]);
  return { ...found, silent, isShort, error };
}

// A machine a row: this one, and those that have joined.
function machinesOf(own, hosts, instances) {
  const by = groups(instances, "host_id");
  const mine = (id) => by.get(id) || [];
  const row = (id, name, host) => ({
    id, name, standing: host?.standing || "alive", address: host?.address || "", facts: host?.facts || {},
    instances: mine(id).length, busy: sumOf(mine(id), "in_flight"), memory: sumOf(mine(id), "memory_bytes"),
  });
  const here = { ...row("", own ? `${own.name} (the server)` : "the server", null), facts: own || {} };
  return [here, ...hosts.map((host) => row(host.host_id, host.facts.name, host))];
}

export function Overview() {
  const { history, now, models: paces, silent, isShort, error } = usePaces();
  const models = usePoll("/api/v1/models");
  const instances = usePoll("/api/v1/instances");
  const hosts = usePoll("/api/v1/hosts", 5000);
  const status = usePoll("/api/v1/status", 5000);
  const all = instances.data?.instances || [];
  const counts = {};
  for (const one of all) counts[one.state] = (counts[one.state] || 0) + 1;
  const by = Object.entries(counts);
  const line = (name, label) => html`<${Spark} values=${history.map((one) => one[name] || 0)} label=${`${label}, last two minutes`} />`;
  const told = (name, words) => (now ? words(now[name]) : "–");
  const paceFor = (m) => paces.get(m.name);
  return html`<${Note} error=${error || models.error || instances.error}>${silent ? `${silent} other gateways did not answer; rates are without theirs. ` : null}${isShort ? "More requests end than gateways remember (gateway.timeline_requests); rates are too low." : null}<//>
    <div class="cards">
      <${Card} title="Requests a second"><div class="big">${told("requests", rate)}</div>${line("requests", "requests a second")}
        <div class="hint">${now?.failed ? html`<span class="state failed">✕ ${rate(now.failed)} of them failed</span>` : "none failed"}</div><//>
      <${Card} title="Tokens a second"><div class="big">${told("tokens", rate)}</div>${line("tokens", "tokens a second")}<//>
      <${Card} title="First token, half within"><div class="big">${told("p50", span)}</div>${line("p50", "time to first token")}<div class="hint">99 of 100: ${told("p99", span)}</div><//>
      <${Card} title="Running / waiting"><div class="big">${now ? `${now.busy} / ${now.waiting}` : "–"}</div><div class="hint">requests, of all gateways</div><//>
      <${Card} title="Instances"><div>${by.length ? by.map(([state, count]) => html`<div>${whole(count)} <${State} of=${state} /></div>`) : "none"}</div><//>
      <${Card} title="Memory of models"><div class="big">${bytes(sumOf(all, "memory_bytes"))}</div><//>
    </div>
    <h2>Models</h2>
    ${models.data && (models.data.models.length
      ? html`<${Table} label="Models" rows=${models.data.models} idOf=${(m) => m.worker_key} columns=${[
          { name: "Model", keep: true, cut: true, size: 14, sort: (m) => m.name, of: (m) => html`<a href="#/models">${m.name}</a>` },
          { name: "Ready", size: 6, sort: (m) => m.ready, of: (m) => `${m.ready} of ${m.wanted}`, number: true },
          { name: "State", cut: true, size: 9, sort: (m) => m.wanted - m.ready, of: (m) => (m.wanted || Object.keys(m.states).length ? Object.keys(m.states) : ["stopped"]).map((state) => html`<${State} of=${state} /> `) },
          { name: "Running / waiting", size: 9, sort: (m) => paceFor(m)?.busy ?? 0, of: (m) => `${paceFor(m)?.busy ?? 0} / ${paceFor(m)?.waiting ?? 0}`, number: true },
          { name: "Requests/s", size: 7, sort: (m) => paceFor(m)?.requests ?? 0, of: (m) => rate(paceFor(m)?.requests ?? 0), number: true },
          { name: "Tokens/s", size: 7, sort: (m) => paceFor(m)?.tokens ?? 0, of: (m) => rate(paceFor(m)?.tokens ?? 0), number: true },
          { name: "First token p50 / p99", size: 11, sort: (m) => paceFor(m)?.p50, of: (m) => both(paceFor(m)), number: true },
          { name: "Reason", cut: true, size: 14, of: (m) => m.reason || "" },
        ]} />`
      : html`<${Empty}>No model was asked for yet. <a href="#/models">Start the first one.</a><//>`)}
    <h2>Machines</h2>
    ${hosts.data && html`<${Table} label="Machines" rows=${machinesOf(status.data?.machine, hosts.data.hosts, all)} idOf=${(h) => h.id} columns=${[
      { name: "Machine", keep: true, cut: true, size: 12, sort: (h) => h.name, of: (h) => h.name },
      { name: "State", cut: true, size: 7, sort: (h) => h.standing, of: (h) => html`<${State} of=${h.standing} />` },
      { name: "Instances", size: 6, sort: (h) => h.instances, of: (h) => h.instances, number: true },
      { name: "Running", size: 6, sort: (h) => h.busy, of: (h) => h.busy, number: true },
      { name: "Models' memory", size: 8, sort: (h) => h.memory, of: (h) => bytes(h.memory), number: true },
      { name: "Memory free / all", size: 10, sort: (h) => h.facts.memory_free_bytes, of: (h) => (h.facts.memory_bytes ? `${bytes(h.facts.memory_free_bytes)} / ${bytes(h.facts.memory_bytes)}` : "–"), number: true },
      { name: "Load / CPUs", size: 7, sort: (h) => h.facts.load_1m / h.facts.cpus, of: (h) => (h.facts.cpus ? `${h.facts.load_1m ?? "–"} / ${h.facts.cpus}` : "–"), number: true },
      { name: "GPUs", cut: true, size: 10, of: (h) => (h.facts.gpus || []).join(", ") || "–" },
      { name: "Address", size: 9, of: (h) => html`<span class="mono">${h.address}</span>` },
    ]} />`}`;
}
