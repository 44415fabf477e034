// Usage over time: requests and tokens by hour or by day, of one key or of all.
import { html } from "/console/vendor/htm-preact.js";
import { Note, Select, usePoll } from "/console/parts.js";
import { Chart } from "/console/chart.js";

const HOUR_S = 3600;
const DAY_S = 86400;
const SPANS = {
  hour: { told: "the last 24 hours, by hour", each: HOUR_S, count: 24, what: "Hour" },
  day: { told: "the last 30 days, by day (UTC)", each: DAY_S, count: 30, what: "Day" },
};
const two = (number) => String(number).padStart(2, "0");

// What a bar is called in full, and below it.
function names(by, at_s) {
  const at = new Date(at_s * 1000);
  const day = at.toLocaleDateString("en", { day: "numeric", month: "short", timeZone: by === "day" ? "UTC" : undefined });
  if (by === "day") return { label: `${day} ${at.getUTCFullYear()}`, mark: day };
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return { label: `${day}, ${clock}`, mark: clock };
}

// keys: [[id, name]]; chosen, onChoose: the id of one, "" for all.
export function Usage({ keys, chosen, onChoose, by, onSpan }) {
  const { each, count, what } = SPANS[by];
  const last = Math.floor(Date.now() / 1000 / each) * each;
  const first = last - (count - 1) * each;
  const { data, error } = usePoll(`/api/v1/usage?by=${by}&since=${first}${chosen ? `&key=${encodeURIComponent(chosen)}` : ""}`, 5000);
  const found = new Map((data?.usage || []).map((row) => [row.at_s, row]));
  const points = (make) => Array.from({ length: count }, (_, at) => {
    const row = found.get(first + at * each);
    return { ...names(by, first + at * each), values: row ? make(row) : make({ requests: 0, failed: 0, prompt_tokens: 0, completion_tokens: 0 }) };
  });
  return html`<h2 id="usage">Usage over time</h2>
    <div class="fields"><label>Of<${Select} value=${chosen} options=${[["", "all keys"], ...keys]} onPick=${onChoose} /></label>
      <label>Over<${Select} value=${by} options=${Object.entries(SPANS).map(([name, span]) => [name, span.told])} onPick=${onSpan} /></label></div>
    <${Note} error=${error} />
    ${data && html`<div class="charts">
      <${Chart} title="Requests" what=${what} series=${[{ name: "answered", kind: "first" }, { name: "failed", kind: "failing" }]} points=${points((row) => [row.requests - row.failed, row.failed])} />
      <${Chart} title="Tokens" what=${what} series=${[{ name: "tokens in", kind: "first" }, { name: "tokens out", kind: "second" }]} points=${points((row) => [row.prompt_tokens, row.completion_tokens])} /></div>`}`;
}
