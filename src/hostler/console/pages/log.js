// The last lines of a log, again and again, with a search.
import { html, useState } from "/console/vendor/htm-preact.js";
import { Note, usePoll } from "/console/parts.js";

export function Log({ path }) {
  const { data, error } = usePoll(`${path}?tail=400`, 2000);
  const [wanted, setWanted] = useState("");
  const parts = data?.logs || (data?.lines ? [data] : []);
  const fits = (line) => line.toLowerCase().includes(wanted.toLowerCase());
  return html`<label>Search<input type="search" value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label>
    <${Note} error=${error} />
    ${parts.map((part) => html`<section>${part.instance_id && html`<h3 class="mono">${part.instance_id}</h3>`}
      ${part.error && html`<${Note}>${part.error}<//>`}
      <pre tabindex="0">${(part.lines || []).filter(fits).join("\n") || "(no line)"}</pre></section>`)}`;
}
