// The events of one instance.
import { html } from "/console/vendor/htm-preact.js";
import { Empty, Note, usePoll } from "/console/parts.js";
import { clock } from "/console/numbers.js";

export function History({ model, instance }) {
  const { data, error } = usePoll(`/api/v1/events?limit=500&model=${encodeURIComponent(model)}`, 2000);
  const mine = (data?.events || []).filter((event) => event.instance_id === instance && !event.kind.endsWith(".progress"));
  return html`<${Note} error=${error} />${data && !mine.length && html`<${Empty}>Nothing is kept of it.<//>`}
    <ol class="events">${mine.map((event) => html`<li><time>${clock(event.at_s)}</time> <strong>${event.kind}</strong> ${event.message}</li>`)}</ol>`;
}
