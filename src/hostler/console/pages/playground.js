// Playground: talk to models, two side by side if you like; embeddings, reranking and token counts.
import { html, useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask } from "/console/api.js";
import { Empty, Note } from "/console/parts.js";
import { Chat } from "/console/pages/chat.js";
import { Similarity, Reranking, Counting } from "/console/pages/trials.js";

const TABS = [["chat", "Chat", "llm", Chat], ["embed", "Similarity", "text2vec", Similarity], ["rerank", "Rerank", "reranker", Reranking], ["tokens", "Tokens", "llm", Counting]];

export function Playground() {
  const [models, setModels] = useState(null);
  const [error, setError] = useState(null);
  const [tab, setTab] = useState("chat");
  useEffect(() => {
    ask("/v1/models").then((told) => setModels(told.data), setError);
  }, []);
  const [, , type, Part] = TABS.find(([name]) => name === tab);
  const fitting = (models || []).filter((model) => model.type === type && model.wanted > 0).map((model) => model.id);
  return html`<div class="row" role="tablist" aria-label="What to try">${TABS.map(([name, label]) => html`<button role="tab" aria-selected=${name === tab ? "true" : "false"}
      class=${name === tab ? "primary" : ""} onClick=${() => setTab(name)}>${label}</button>`)}</div>
    <${Note} error=${error} />
    ${models && (fitting.length ? html`<${Part} key=${tab} models=${fitting} />` : html`<${Empty}>No model here can do that. <a href="#/models">Start one.</a><//>`)}`;
}
