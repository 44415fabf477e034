// Events: what happened, newest first, as it happens.
import { html, useEffect, useMemo, useState } from "/console/vendor/htm-preact.js";
import { ask, events as follow } from "/console/api.js";
import { Empty, Note } from "/console/parts.js";
import { Table } from "/console/table.js";
import { useKept } from "/console/kept.js";
import { moment } from "/console/numbers.js";

const KEPT = 1000;

export function Events() {
  const [list, setList] = useState(null);
  const [error, setError] = useState(null);
  const [wanted, setWanted] = useKept("events", "");
  useEffect(() => {
    const stop = new AbortController();
    const run = async () => {
      let after;
      for (;;) {
        try {
          const told = await ask(after === undefined ? "/api/v1/events?limit=500" : `/api/v1/events?limit=1000&after=${after}`, { signal: stop.signal });
          setError(null);
          after = told.next;
          setList((before) => [...(before || []), ...told.events].slice(-KEPT));
          for await (const data of follow("GET", `/api/v1/events?follow=true&after=${after}`, undefined, stop.signal)) {
            const event = JSON.parse(data);
            after = event.seq ?? after;
            setList((before) => [...before, event].slice(-KEPT));
          }
        } catch (problem) {
          if (stop.signal.aborted) return;
          setError(problem);
        }
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    };
    run();
    return () => stop.abort();
  }, []);
  const rows = useMemo(
    () => (list || []).filter((e) => `${e.kind} ${e.model} ${e.instance_id} ${e.message}`.toLowerCase().includes(wanted.toLowerCase())).reverse(),
    [list, wanted],
  );
  return html`<label>Search<input type="search" value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label>
    <${Note} error=${error} />
    ${list && !rows.length && html`<${Empty}>Nothing ${wanted ? "fits that" : "has happened yet"}.<//>`}
    ${rows.length > 0 && html`<${Table} label="Events" rows=${rows} idOf=${(e) => e.seq} columns=${[
      { name: "When", keep: true, size: 11, sort: (e) => e.at_s, of: (e) => html`<time>${moment(e.at_s)}</time>` },
      { name: "What", cut: true, size: 12, sort: (e) => e.kind, of: (e) => html`<span class="mono">${e.kind}</span>` },
      { name: "Model", keep: true, cut: true, size: 11, sort: (e) => e.model, of: (e) => e.model },
      { name: "Instance", size: 13, sort: (e) => e.instance_id, of: (e) => html`<span class="mono">${e.instance_id}</span>` },
      { name: "Told", cut: true, size: 26, of: (e) => e.message },
    ]} />`}`;
}
