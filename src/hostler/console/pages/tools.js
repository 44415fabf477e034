// What a model may call, and in what shape it shall answer: typed as JSON, checked before it is sent.
import { html } from "/console/vendor/htm-preact.js";
import { Select } from "/console/parts.js";

const EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a town now",
      parameters: { type: "object", properties: { town: { type: "string" } }, required: ["town"] },
    },
  },
];
export const SHAPES = [["text", "as it likes"], ["json_object", "a JSON object"], ["json_schema", "JSON of a schema"]];
const NAME = /^[\w-]{1,64}$/;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function parse(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no JSON: ${error.message}`);
  }
}

// The tools that stand in a field; none of an empty one. Throws a sentence.
export function readTools(text) {
  if (!text.trim()) return [];
  const tools = parse(text);
  if (!Array.isArray(tools)) throw new Error("A list of tools is needed: [ … ].");
  tools.forEach((tool, at) => {
    const which = `Tool ${at + 1}`;
    if (!isObject(tool) || tool.type !== "function" || !isObject(tool.function)) throw new Error(`${which}: {"type": "function", "function": {…}} is needed.`);
    if (!NAME.test(tool.function.name ?? "")) throw new Error(`${which}: "name" is needed, of letters, digits, _ and -.`);
    if (tool.function.parameters !== undefined && !isObject(tool.function.parameters)) throw new Error(`${which}: "parameters" is a JSON schema, an object.`);
  });
  return tools;
}

// The `response_format` of a request; undefined for plain text. Throws a sentence.
export function readShape(shape, text) {
  if (shape === "text") return undefined;
  if (shape === "json_object") return { type: shape };
  if (!text.trim()) throw new Error("A JSON schema is needed.");
  const schema = parse(text);
  if (!isObject(schema)) throw new Error("A JSON schema is an object.");
  return { type: shape, json_schema: { name: "answer", schema, strict: true } };
}

const problemOf = (read) => {
  try {
    read();
    return "";
  } catch (error) {
    return error.message;
  }
};

export const problemsOf = (given) => ({
  tools: problemOf(() => readTools(given.tools)),
  schema: problemOf(() => readShape(given.shape, given.schema)),
});

function Json({ id, label, value, problem, onInput, placeholder }) {
  return html`<label>${label}<textarea rows="6" class="mono" spellcheck="false" value=${value} placeholder=${placeholder} aria-invalid=${problem ? "true" : undefined}
      aria-describedby=${problem ? id : undefined} onInput=${(event) => onInput(event.target.value)}></textarea></label>
    ${problem && html`<p class="note bad" id=${id} role="alert">${problem}</p>`}`;
}

export function ToolFields({ given, set }) {
  const problems = problemsOf(given);
  return html`<details><summary>Tools and JSON answers</summary>
    <${Json} id="tools-problem" label="Tools the model may call (JSON)" value=${given.tools} problem=${problems.tools} onInput=${(tools) => set({ tools })} placeholder="none" />
    <div class="row"><button type="button" onClick=${() => set({ tools: JSON.stringify(EXAMPLE, null, 2) })}>Put an example there</button></div>
    <label>Answer<${Select} value=${given.shape} options=${SHAPES} onPick=${(shape) => set({ shape })} /></label>
    ${given.shape === "json_schema" && html`<${Json} id="schema-problem" label="JSON schema of the answer" value=${given.schema} problem=${problems.schema} onInput=${(schema) => set({ schema })}
      placeholder='{"type": "object", …}' />`}</details>`;
}
