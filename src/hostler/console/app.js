// The frame of the console: who is signed in, which page is shown.
import { html, render, useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask, signIn, signOut } from "/console/api.js";
import { Note } from "/console/parts.js";
import { forgetKept } from "/console/kept.js";
import { forgetRequests } from "/console/feed.js";
import { Overview } from "/console/pages/overview.js";
import { Models } from "/console/pages/models.js";
import { Instances } from "/console/pages/instances.js";
import { Machines } from "/console/pages/machines.js";
import { Requests } from "/console/pages/requests.js";
import { Playground } from "/console/pages/playground.js";
import { Keys } from "/console/pages/keys.js";
import { Events } from "/console/pages/events.js";
import { Settings } from "/console/pages/settings.js";

const PAGES = [
  ["overview", "Overview", Overview],
  ["models", "Models", Models],
  ["instances", "Instances", Instances],
  ["machines", "Machines", Machines],
  ["requests", "Requests", Requests],
  ["playground", "Playground", Playground],
  ["keys", "Keys", Keys],
  ["events", "Events", Events],
  ["settings", "Settings", Settings],
];
const FOR_ALL = new Set(["playground"]); // of a key that is no administrator's

// A ticket comes behind the #, which browsers send nowhere; it leaves the address at once.
function takeTicket() {
  const match = /^#ticket=([\w]+)$/.exec(location.hash);
  if (match) history.replaceState(null, "", location.pathname);
  return match ? match[1] : "";
}

function SignIn({ onDone, problem }) {
  const [key, setKey] = useState("");
  const [state, setState] = useState({ busy: false, error: problem });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      onDone(await signIn(key.trim()));
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<main class="signin"><h1>Hostler</h1>
    <form onSubmit=${go}>
      <label>API key<input type="password" autocomplete="off" value=${key} required autofocus
        onInput=${(event) => setKey(event.target.value)} /></label>
      <button class="primary" disabled=${state.busy}>Sign in</button>
      <${Note} error=${state.error} />
      <p class="hint">Or ask for a link that works once: <code>hostler console</code>, where the server runs.</p>
    </form></main>`;
}

const pageOf = () => location.hash.replace(/^#\/?/, "").split("/")[0];

function App() {
  const [who, setWho] = useState(undefined);
  const [problem, setProblem] = useState(null);
  const [page, setPage] = useState(pageOf());

  useEffect(() => {
    const ticket = takeTicket();
    (ticket ? signIn(ticket) : ask("/api/v1/session")).then(setWho, (error) => {
      setProblem(ticket || error.status !== 401 ? error : null);
      setWho(null);
    });
    const moved = () => setPage(pageOf());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);

  if (who === undefined) return html`<p class="lead">Loading…</p>`;
  if (who === null) return html`<${SignIn} onDone=${setWho} problem=${problem} />`;

  const isAdmin = who.scopes.includes("admin");
  const pages = PAGES.filter(([name]) => isAdmin || FOR_ALL.has(name));
  const [name, title, Page] = pages.find(([one]) => one === page) || pages[0];
  document.title = `${title} · Hostler`;
  const leave = async () => {
    await signOut().catch(() => {});
    forgetKept();
    forgetRequests();
    setWho(null);
  };
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to the page</a>
    <header><span class="brand">Hostler</span>
      <nav aria-label="Pages">${pages.map(([one, label]) => html`<a href=${`#/${one}`} aria-current=${one === name ? "page" : undefined}>${label}</a>`)}</nav>
      <button class="quiet" onClick=${leave}>Sign out</button></header>
    <main id="main" tabindex="-1"><h1>${title}</h1><${Page} key=${name} who=${who} /></main>`;
}

render(html`<${App} />`, document.getElementById("app"));
