// One message of a conversation: text as text, JSON set out, a tool call as a block of its own. Nothing of it is ever HTML.
import { html, useState } from "/console/vendor/htm-preact.js";

// The text set out, if it is JSON of more than one word; null otherwise.
export function pretty(text) {
  if (!/^\s*[{[]/.test(text || "")) return null;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return null; // it only looks like JSON, or is not whole yet
  }
}

function Call({ call, result, onResult, id }) {
  return html`<figure class="call"><figcaption>calls <strong class="mono">${call.name || "…"}</strong></figcaption>
    <pre tabindex="0" aria-label=${`Arguments of ${call.name}`}>${pretty(call.arguments) ?? call.arguments}</pre>
    ${onResult && html`<label for=${id}>What ${call.name} gave</label><textarea id=${id} rows="2" class="mono" value=${result} onInput=${(event) => onResult(event.target.value)}></textarea>`}</figure>`;
}

// onResults: what becomes of the results of its tool calls; none when it does not wait for any.
export function Said({ message, onResults }) {
  const [isPlain, setIsPlain] = useState(false);
  const [results, setResults] = useState({});
  const calls = message.tools || [];
  const set = message.done ? pretty(message.content) : null;
  const waits = onResults && calls.length > 0;
  const give = (event) => {
    event.preventDefault();
    onResults(calls.map((call, at) => ({ role: "tool", id: call.id, name: call.name, content: results[at] ?? "", done: true })));
  };
  const blocks = calls.map((call, at) => html`<${Call} call=${call} id=${`result-${call.id}`} result=${results[at] ?? ""}
    onResult=${waits ? (text) => setResults({ ...results, [at]: text }) : null} />`);
  return html`<div class=${`said ${message.role}`}><small>${message.role}${message.name ? ` ${message.name}` : ""}${message.told && ` · ${message.told}`}
      ${set !== null && html`<button type="button" class="quiet" aria-pressed=${isPlain ? "true" : "false"} onClick=${() => setIsPlain(!isPlain)}>${isPlain ? "Set out" : "Plain"}</button>`}</small>${set !== null && !isPlain ? html`<code class="json">${set}</code>` : message.content}
    ${waits ? html`<form onSubmit=${give}>${blocks}<button class="primary">Go on with ${calls.length === 1 ? "this result" : "these results"}</button></form>` : blocks}
    ${message.error && html`<span class="state failed">✕ ${message.error}</span>`}</div>`;
}
