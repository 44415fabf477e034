// The server's API, asked with the session's cookie. Nothing here knows what is shown.

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message || `the server answered ${status}`);
    this.status = status;
    this.code = error.code || "";
  }
}

const MARK = { "x-hostler-console": "1" }; // only a script of this page can send it

async function send(method, path, body, more = {}) {
  const headers = { ...MARK, ...more.headers };
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: more.signal,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server does not answer.", code: "unreachable" });
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = (await answer.json()).error || {};
  } catch {
    // no JSON: the status alone has to do
  }
  throw new ApiError(answer.status, told);
}

export const ask = async (path, more) => (await send("GET", path, undefined, more)).json();
export const order = async (method, path, body, more) => (await send(method, path, body, more)).json();

// Where a model is; slashes of its name are slashes of the address.
export const modelPath = (name) => `/api/v1/models/${name.split("/").map(encodeURIComponent).join("/")}`;

// The gateway that answers knows the session; another one, of several, may know it a moment later.
export async function signIn(key) {
  const who = await order("POST", "/api/v1/session", undefined, { headers: { authorization: `Bearer ${key}` } });
  for (let tries = 0; tries < 40; tries += 1) {
    const error = await ask("/v1/models").then(() => null, (problem) => problem);
    if (error?.status !== 401) break;
    await new Promise((done) => setTimeout(done, 50));
  }
  return who;
}
export const signOut = () => order("DELETE", "/api/v1/session");

// Server-sent events: each one's data, as it comes. Ends when the server ends or `signal` says so.
export async function* events(method, path, body, signal) {
  const answer = await send(method, path, body, { signal, headers: { accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
