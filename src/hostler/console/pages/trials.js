// Small trials of models that do not chat.
import { html, useState } from "/console/vendor/htm-preact.js";
import { order } from "/console/api.js";
import { Note, Select } from "/console/parts.js";
import { Table } from "/console/table.js";

function Trial({ models, label, hint, verb, lines, ask, children }) {
  const [model, setModel] = useState(models[0]);
  const [texts, setTexts] = useState(lines);
  const [state, setState] = useState({ busy: false, error: null, found: null });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null, found: null });
    try {
      setState({ busy: false, error: null, found: await ask(model, texts) });
    } catch (error) {
      setState({ busy: false, error, found: null });
    }
  };
  return html`<form onSubmit=${go}>
    <label>Model<${Select} value=${model} options=${models} onPick=${setModel} /></label>
    <label>${label}<textarea rows="5" value=${texts} onInput=${(e) => setTexts(e.target.value)}></textarea><span class="help">${hint}</span></label>
    <button class="primary" disabled=${state.busy}>${verb}</button><${Note} error=${state.error} />
    ${state.found && children(state.found)}</form>`;
}

const split = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const length = (v) => Math.sqrt(v.reduce((total, x) => total + x * x, 0));
const cosine = (a, b) => a.reduce((total, x, at) => total + x * b[at], 0) / (length(a) * length(b) || 1);

export function Similarity({ models }) {
  const compare = async (model, text) => {
    const input = split(text);
    const told = await order("POST", "/v1/embeddings", { model, input });
    const vectors = told.data.map((one) => one.embedding);
    return { input, rows: vectors.map((a) => vectors.map((b) => cosine(a, b))) };
  };
  return html`<${Trial} models=${models} label="Texts" hint="One a line; each is compared with each." verb="Compare" ask=${compare}
    lines=${"A groom looks after horses.\nA hostler takes care of travellers' horses.\nThe quarterly report is due."}>
    ${({ input, rows }) => html`<div class="gap"></div><${Table} label="Similarity" rows=${rows.map((row, at) => ({ row, at }))}
      columns=${[{ name: "", of: (r) => `${r.at + 1}. ${input[r.at]}` }, ...input.map((_, at) => ({ name: String(at + 1), number: true, of: (r) => r.row[at].toFixed(3) }))]} />`}<//>`;
}

export function Reranking({ models }) {
  const [query, setQuery] = useState("Who looks after horses?");
  const rank = async (model, text) => {
    const documents = split(text);
    const told = await order("POST", "/v1/rerank", { model, query, documents });
    return told.results.map((one) => ({ score: one.relevance_score, text: documents[one.index] }));
  };
  return html`<label>Question<input value=${query} onInput=${(e) => setQuery(e.target.value)} /></label>
    <${Trial} models=${models} label="Documents" hint="One a line." verb="Rank" ask=${rank}
      lines=${"The quarterly report is due.\nA hostler takes care of travellers' horses.\nHorses eat grass."}>
      ${(found) => html`<div class="gap"></div><${Table} label="Ranking" rows=${found} columns=${[{ name: "Score", number: true, of: (r) => r.score.toFixed(4) }, { name: "Document", of: (r) => r.text }]} />`}<//>`;
}

export function Counting({ models }) {
  const count = (model, prompt) => order("POST", "/tokenize", { model, prompt });
  return html`<${Trial} models=${models} label="Text" hint="Counted by the model's own tokenizer." verb="Count" ask=${count} lines="Summarise the quarterly report.">
    ${(told) => html`<p class="big" role="status">${told.count} tokens</p>`}<//>`;
}
