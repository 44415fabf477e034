// Instances: every copy, how it is, what it does.
import { html, useMemo, useState } from "/console/vendor/htm-preact.js";
import { order } from "/console/api.js";
import { Dialog, Empty, Note, State, Sure, usePoll } from "/console/parts.js";
import { Table } from "/console/table.js";
import { useRequests } from "/console/feed.js";
import { useKept } from "/console/kept.js";
import { instancePaces } from "/console/pace.js";
import { bytes, rate, span } from "/console/numbers.js";
import { Log } from "/console/pages/log.js";
import { History } from "/console/pages/history.js";

// One that serves and whose process is ours to start and end.
const isReplaceable = (one) => ["ready", "suspect"].includes(one.state) && Boolean(one.pid);

export function Instances() {
  const { data, error } = usePoll("/api/v1/instances", 1500);
  const [open, setOpen] = useState(null);
  const [leaving, setLeaving] = useState(null); // asked about
  const [told, setTold] = useState(null);
  const [wanted, setWanted] = useKept("instances", "");
  const { rows: requests, atS, fromS } = useRequests();
  const paces = useMemo(() => instancePaces(requests, atS, fromS), [requests]);
  const paceOf = (one) => paces.get(one.instance_id);
  const restart = async () => {
    await order("POST", `/api/v1/instances/${encodeURIComponent(leaving.instance_id)}/restart`);
    setTold(html`${leaving.instance_id} of ${leaving.model_name}: another one is started in its place. <a href="#/events">Events</a> tell what comes of it.`);
  };
  const rows = useMemo(
    () => (data?.instances || []).filter((one) => `${one.model_name} ${one.instance_id} ${one.state} ${one.host_name}`.includes(wanted)),
    [data, wanted],
  );
  return html`<label>Filter<input type="search" value=${wanted} onInput=${(e) => setWanted(e.target.value.trim())} placeholder="model, state, machine or id" /></label>
    <${Note} error=${error}>${told}<//>
    ${rows.length > 0 && html`<p class="hint">Requests, first bytes and failures: of the last 5 minutes, or as far back as gateways remember.</p>`}
    ${data && !data.instances.length && html`<${Empty}>Nothing runs. <a href="#/models">Start a model.</a><//>`}
    ${rows.length > 0 && html`<${Table} label="Instances" rows=${rows} idOf=${(i) => i.instance_id} columns=${[
      { name: "Instance", keep: true, size: 9, sort: (i) => i.instance_id, of: (i) => html`<button class="quiet mono" onClick=${() => setOpen(i)}>${i.instance_id}</button>` },
      { name: "Model", keep: true, cut: true, size: 10, sort: (i) => i.model_name, of: (i) => i.model_name },
      { name: "State", cut: true, size: 8, sort: (i) => i.state, of: (i) => html`<${State} of=${i.state} />${i.reason && html`<div class="hint">${i.reason}</div>`}` },
      { name: "Change", size: 7, of: (i) => isReplaceable(i) && html`<button aria-label=${`Restart ${i.instance_id}`} onClick=${() => setLeaving(i)}>Restart</button>` },
      { name: "For", size: 6, sort: (i) => i.state_for_s, of: (i) => span(i.state_for_s), number: true },
      { name: "Machine", cut: true, size: 7, sort: (i) => i.host_name, of: (i) => i.host_name || "this one" },
      { name: "Busy", size: 6, sort: (i) => i.in_flight, of: (i) => `${i.in_flight} of ${i.limit_model_concurrency}`, number: true },
      { name: "Requests/s", size: 6.5, sort: (i) => paceOf(i)?.rate ?? 0, of: (i) => rate(paceOf(i)?.rate ?? 0), number: true },
      { name: "First byte p50 / p99", size: 11, sort: (i) => paceOf(i)?.p50, of: (i) => (paceOf(i)?.firsts.length ? `${span(paceOf(i).p50)} / ${span(paceOf(i).p99)}` : "–"), number: true },
      { name: "Failed", size: 6, sort: (i) => paceOf(i)?.failed ?? 0, of: (i) => { const p = paceOf(i); return p?.failed ? html`<span class="state failed">✕ ${p.failed} of ${p.ended}</span>` : "0"; }, number: true },
      { name: "Memory", size: 6, sort: (i) => i.memory_bytes, of: (i) => bytes(i.memory_bytes), number: true },
      { name: "Heard", size: 6, sort: (i) => i.last_heartbeat_s, of: (i) => span(i.last_heartbeat_s), number: true },
    ]} />`}
    ${leaving && html`<${Sure} title=${`Restart ${leaving.instance_id}?`} verb="Restart" onYes=${restart} onNo=${() => setLeaving(null)}
      what=${`Another copy of ${leaving.model_name} starts in its place, first if there is memory for both. Then this one takes nothing new, finishes what it has and ends.`} />`}
    ${open && html`<${Dialog} title=${`${open.model_name}: ${open.instance_id}`} onClose=${() => setOpen(null)}>
      <p class="hint">${open.engine}${open.pid ? `, process ${open.pid}` : ""}, replica ${open.replica + 1}, its process number ${open.epoch}</p>
      <h3>What happened</h3><${History} model=${open.model_name} instance=${open.instance_id} />
      <h3>Log</h3><${Log} path=${`/api/v1/instances/${open.instance_id}/logs`} />
      <div class="row"><button onClick=${() => setOpen(null)}>Close</button></div><//>`}`;
}
