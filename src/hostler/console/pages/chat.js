// One conversation, with one model or the same with two.
import { html, useRef, useState } from "/console/vendor/htm-preact.js";
import { events } from "/console/api.js";
import { Select } from "/console/parts.js";
import { span } from "/console/numbers.js";
import { Said } from "/console/pages/said.js";
import { problemsOf, readShape, readTools, ToolFields } from "/console/pages/tools.js";

const started = { temperature: "0.2", max_tokens: "256", top_p: "", tools: "", shape: "text", schema: "" };

function bodyOf(model, messages, given) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "max_tokens", "top_p"]) if (given[name] !== "") body[name] = Number(given[name]);
  const [tools, shape] = [readTools(given.tools), readShape(given.shape, given.schema)];
  if (tools.length) body.tools = tools;
  if (shape) body.response_format = shape;
  return body;
}

// What was said so far, as the API wants it.
function messagesOf(system, talk) {
  const said = talk.map((one) => {
    if (one.role === "tool") return { role: "tool", tool_call_id: one.id, content: one.content };
    if (!one.tools?.length) return { role: one.role, content: one.content };
    const calls = one.tools.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    return { role: one.role, content: one.content || null, tool_calls: calls };
  });
  return system ? [{ role: "system", content: system }, ...said] : said;
}

const CALLS_MOST = 128;

// A tool call grows by pieces; each says which one it belongs to.
function withPiece(tools, piece) {
  const at = Number.isInteger(piece.index) && piece.index >= 0 && piece.index < CALLS_MOST ? piece.index : 0;
  const grown = [...tools];
  while (grown.length <= at) grown.push({ id: `call-${grown.length}`, name: "", arguments: "" });
  const before = grown[at];
  grown[at] = {
    id: piece.id || before.id,
    name: before.name + (piece.function?.name || ""),
    arguments: before.arguments + (piece.function?.arguments || ""),
  };
  return grown;
}

export function Chat({ models }) {
  const [chosen, setChosen] = useState([models[0]]);
  const [talks, setTalks] = useState([[], []]);
  const [system, setSystem] = useState("");
  const [text, setText] = useState("");
  const [given, setGiven] = useState(started);
  const [busy, setBusy] = useState(false);
  const stop = useRef(null);
  const set = (name) => (event) => setGiven({ ...given, [name]: event.target.value });
  const change = (at, make) => setTalks((before) => before.map((talk, one) => (one === at ? make(talk) : talk)));
  const last = (at, make) => change(at, (talk) => [...talk.slice(0, -1), make(talk.at(-1))]);

  const run = async (at, model, talk, signal) => {
    const messages = messagesOf(system, talk);
    change(at, () => [...talk, { role: "assistant", content: "", told: model }]);
    const began = performance.now();
    let first = null;
    let told = model;
    try {
      for await (const data of events("POST", "/v1/chat/completions", bodyOf(model, messages, given), signal)) {
        if (data === "[DONE]") continue; // whoever leaves now has not heard the end
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        const delta = chunk.choices?.[0]?.delta || {};
        if ((delta.content || delta.tool_calls) && first === null) first = (performance.now() - began) / 1000;
        if (chunk.usage) {
          const took = (performance.now() - began) / 1000;
          told = `${model} · ${chunk.usage.completion_tokens} tokens, first after ${span(first)}, ${(chunk.usage.completion_tokens / Math.max(took - (first || 0), 1e-3)).toFixed(0)} a second`;
        }
        if (delta.content) last(at, (message) => ({ ...message, content: message.content + delta.content }));
        for (const piece of delta.tool_calls || []) last(at, (message) => ({ ...message, tools: withPiece(message.tools || [], piece) }));
      }
      last(at, (message) => ({ ...message, told, done: true }));
    } catch (error) {
      last(at, (message) => ({ ...message, told, done: true, error: signal.aborted ? "stopped" : error.message }));
    }
  };

  const problems = problemsOf(given);
  const waits = talks.some((talk) => talk.at(-1)?.tools?.length && !talk.at(-1).error);
  const isReady = !busy && !waits && text.trim() && !problems.tools && !problems.schema;
  // each: [which conversation, what is said there now]
  const goOn = async (each) => {
    stop.current = new AbortController();
    setBusy(true);
    await Promise.all(each.map(([at, said]) => run(at, chosen[at], [...talks[at], ...said], stop.current.signal)));
    setBusy(false);
  };
  const send = (event) => {
    event.preventDefault();
    if (!isReady) return;
    setText("");
    goOn(chosen.map((_, at) => [at, [{ role: "user", content: text }]]));
  };
  const results = (at, message) => (!busy && message === talks[at].at(-1) && message.tools && !message.error ? (said) => goOn([[at, said]]) : null);
  const onKey = (event) => {
    if (event.key === "Enter" && !event.shiftKey) send(event);
  };
  const pick = (at) => (model) => setChosen(chosen.map((one, place) => (place === at ? model : one)));
  return html`<div class="talk">${chosen.map((model, at) => html`<section aria-label=${`Conversation with ${model}`}>
      <label>Model<${Select} value=${model} options=${models} onPick=${pick(at)} /></label>
      <div aria-live="polite">${talks[at].map((message) => html`<${Said} message=${message} onResults=${results(at, message)} />`)}</div></section>`)}</div>
    <form onSubmit=${send}>
      <label>Message<textarea rows="3" value=${text} onInput=${(e) => setText(e.target.value)} onKeyDown=${onKey} placeholder="Enter sends, Shift+Enter makes a new line"></textarea></label>
      <div class="row"><button class="primary" disabled=${!isReady}>Send</button>
        <button type="button" disabled=${!busy} onClick=${() => stop.current?.abort()}>Stop</button>
        <button type="button" disabled=${busy} onClick=${() => setTalks([[], []])}>New conversation</button>
        <button type="button" disabled=${busy} onClick=${() => { setTalks([[], []]); setChosen(chosen.length === 1 ? [chosen[0], models[1] || models[0]] : [chosen[0]]); }}>
          ${chosen.length === 1 ? "Compare two models" : "One model"}</button></div>
      ${waits && !busy && html`<p class="note" role="status">The model waits for what its tools gave: write it beside each call.</p>`}
      <details><summary>System message and parameters</summary>
        <label>System message<textarea rows="2" value=${system} onInput=${(e) => setSystem(e.target.value)}></textarea></label>
        <div class="fields"><label>Temperature<input inputmode="decimal" value=${given.temperature} onInput=${set("temperature")} /></label>
          <label>Tokens at most<input inputmode="numeric" value=${given.max_tokens} onInput=${set("max_tokens")} /></label>
          <label>Top p<input inputmode="decimal" value=${given.top_p} placeholder="default" onInput=${set("top_p")} /></label></div></details>
      <${ToolFields} given=${given} set=${(change) => setGiven({ ...given, ...change })} />
    </form>`;
}
