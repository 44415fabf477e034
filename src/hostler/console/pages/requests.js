// Requests: each one's way through the gateway, drawn to scale.
import { html, useMemo, useState } from "/console/vendor/htm-preact.js";
import { Dialog, Empty, Note, Select, State, usePoll } from "/console/parts.js";
import { useRequests } from "/console/feed.js";
import { useKept } from "/console/kept.js";
import { Table } from "/console/table.js";
import { clock, moment, span, whole } from "/console/numbers.js";

// [{kind, from, to}] in seconds from the request's arrival.
export function phases(request) {
  const { tries, first_byte_s: first } = request;
  const took = Math.max(request.took_s, 1e-6);
  const found = [];
  const add = (kind, from, to) => to > from && found.push({ kind, from, to });
  add("queue", 0, tries.length ? tries[0].at_s : took);
  tries.forEach((one, at) => {
    const ends = one.ended_s ?? took;
    const hasBegun = (first ?? ends) < ends;
    if (!hasBegun && (one.failure || at < tries.length - 1)) {
      add("retry", one.at_s, tries[at + 1]?.at_s ?? ends);
      return;
    }
    const began = hasBegun ? Math.max(first, one.at_s) : ends; // by one before it: it goes on at once
    add("prefill", one.at_s, began);
    add("decode", began, ends);
  });
  return found;
}

const WORDS = { queue: "waited for a place", retry: "was tried elsewhere", prefill: "waited for the first byte", decode: "was answered" };

function Bar({ request }) {
  const parts = phases(request);
  const told = parts.map((p) => `${WORDS[p.kind]} ${span(p.to - p.from)}`).join(", ");
  return html`<div class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=${told}>
    <title>${told}</title>
    ${parts.map((p) => html`<rect class=${p.kind} x=${(100 * p.from) / Math.max(request.took_s, 1e-6)} width=${Math.max((100 * (p.to - p.from)) / Math.max(request.took_s, 1e-6), 0.4)} y="0" height="10" />`)}</svg></div>`;
}

const ALL = ["", "all"];
const OUTCOMES = ["under way", "ok", "client_error", "refused", "upstream_error", "stream_error", "client_gone", "timeout"];

export function Requests() {
  const [filter, setFilter] = useKept("requests", { model: "", key: "", outcome: "" });
  const [open, setOpen] = useState(null);
  const { rows: every, silent, isShort, isKnown, error } = useRequests();
  const models = usePoll("/api/v1/models", 10000);
  const keys = usePoll("/api/v1/keys", 10000);
  const names = new Map((keys.data?.keys || []).map((key) => [key.key_id, key.name || key.key_id]));
  const set = (name) => (value) => setFilter({ ...filter, [name]: value });
  const { model, key, outcome } = filter;
  const rows = useMemo(
    () => (model || key || outcome ? every.filter((r) => (!model || model === r.model || model === r.asked) && (!key || key === r.key_id) && (!outcome || outcome === (r.outcome || "under way"))) : every),
    [every, model, key, outcome],
  );
  return html`<div class="fields">
      <label>Model<${Select} value=${filter.model} onPick=${set("model")} options=${[ALL, ...(models.data?.models || []).map((m) => m.name)]} /></label>
      <label>Key<${Select} value=${filter.key} onPick=${set("key")} options=${[ALL, ...names]} /></label>
      <label>Outcome<${Select} value=${filter.outcome} onPick=${set("outcome")} options=${[ALL, ...OUTCOMES]} /></label>
    </div>
    <${Note} error=${error}>${silent ? `${silent} other gateways did not answer; their requests are missing. ` : null}${isShort ? "More requests end than gateways remember (gateway.timeline_requests); some are missing." : null}<//>
    <p class="hint"><svg width="10" height="10" aria-hidden="true"><rect class="queue" width="10" height="10" /></svg> waited for a place
      <svg width="10" height="10" aria-hidden="true"><rect class="retry" width="10" height="10" /></svg> tried elsewhere
      <svg width="10" height="10" aria-hidden="true"><rect class="prefill" width="10" height="10" /></svg> until the first byte
      <svg width="10" height="10" aria-hidden="true"><rect class="decode" width="10" height="10" /></svg> answer</p>
    ${isKnown && !rows.length && html`<${Empty}>No request ${every.length ? "fits that" : "has come yet"}. <a href="#/playground">Send one.</a><//>`}
    ${rows.length > 0 && html`<${Table} label="Requests" rows=${rows} idOf=${(r) => r.request_id} columns=${[
      { name: "When", keep: true, size: 7, sort: (r) => r.at_s, of: (r) => html`<time>${clock(r.at_s)}</time>` },
      { name: "Request", keep: true, size: 10, of: (r) => html`<button class="quiet mono" onClick=${() => setOpen(r)}>${r.request_id}</button>` },
      { name: "Model", keep: true, cut: true, size: 10, sort: (r) => r.model || r.asked, of: (r) => r.model || r.asked },
      { name: "Key", keep: true, cut: true, size: 8, sort: (r) => names.get(r.key_id) || r.key_id, of: (r) => names.get(r.key_id) || r.key_id },
      { name: "Outcome", cut: true, size: 9, sort: (r) => r.outcome || "under way", of: (r) => html`<${State} of=${r.outcome || "under way"} /> ${r.outcome && r.outcome !== "ok" ? `${r.status} ${r.code}` : ""}` },
      { name: "Time", size: 11, of: (r) => html`<${Bar} request=${r} />` },
      { name: "First byte", size: 8, sort: (r) => r.first_byte_s, of: (r) => span(r.first_byte_s), number: true },
      { name: "Took", size: 7, sort: (r) => r.took_s, of: (r) => span(r.took_s), number: true },
      { name: "Tokens in / out", size: 10, sort: (r) => r.completion_tokens, of: (r) => `${r.prompt_tokens ?? "–"} / ${r.completion_tokens ?? "–"}${r.estimated ? " ≈" : ""}`, number: true },
    ]} />`}
    ${open && html`<${Dialog} title=${open.request_id} onClose=${() => setOpen(null)}>
      <p>${moment(open.at_s)}, ${open.route}${open.stream ? ", streamed" : ""}: ${open.outcome || "under way"} ${open.code}</p><${Bar} request=${open} />
      <ol>${open.tries.map((one) => html`<li><span class="mono">${one.instance_id}</span>: ${one.why}; from ${span(one.at_s)} to ${span(one.ended_s ?? open.took_s)}
        ${one.failure && html` <span class="state failed">✕ ${one.failure}</span>`}</li>`)}</ol>
      <p>${whole(open.prompt_tokens || 0)} tokens in${open.cached_tokens ? ` (${whole(open.cached_tokens)} from the cache)` : ""}, ${whole(open.completion_tokens || 0)} out</p>
      <div class="row"><button onClick=${() => setOpen(null)}>Close</button></div><//>`}`;
}
