// The requests that gateways remember: one list for all pages. Each look asks only for what is new since the last one;
// older ones are read a page at a time, up to what one list holds.
import { useEffect, useState } from "/console/vendor/htm-preact.js";
import { ask } from "/console/api.js";
import { endOf } from "/console/pace.js";

const MOST = 10000; // requests that are held
const PAGE = 1000;
const NEW = 5000; // in one look at most: more, and the list begins anew
const EVERY_MS = 2000;
const OVERLAP_S = 1; // by which looks overlap, so that none is missed
const SAME_S = 0.002; // by which pages do: clocks are read twice

// rows: under way first, then the newest. atS: the server's time of the last look; fromS: since when all are known.
// isWhole: all that is remembered is here. isShort: some ended unseen.
const NOTHING = { rows: [], atS: 0, fromS: 0, silent: 0, isWhole: false, isShort: false, isKnown: false, error: null };

class Feed {
  constructor() {
    this.state = NOTHING;
    this.followers = new Set();
    this.clear();
  }

  clear() {
    this.forget();
    this.running = [];
    this.stop?.abort();
    this.stop = null;
    this.state = NOTHING;
  }

  forget() {
    this.ids = new Set(); // of those that ended
    this.ended = []; // the one that ended last first
    this.newest = []; // the same, the one that began last first
  }

  follow(tell) {
    this.followers.add(tell);
    if (!this.stop) {
      this.stop = new AbortController();
      this.run(this.stop.signal);
    }
    return () => {
      this.followers.delete(tell);
      if (this.followers.size) return;
      this.stop?.abort();
      this.stop = null;
    };
  }

  async run(signal) {
    while (!signal.aborted) {
      try {
        if (!document.hidden) {
          await this.look(signal);
          while (!this.state.isWhole && this.ended.length < MOST) await this.lookBack(signal);
        }
      } catch (error) {
        if (signal.aborted) return;
        this.tell({ error });
      }
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  async look(signal) {
    const [newest] = this.ended;
    if (!newest) return this.begin(await this.ask(signal, { limit: PAGE }), PAGE);
    const told = await this.ask(signal, { limit: NEW, ended_after: endOf(newest) - OVERLAP_S });
    if (told.requests.length >= NEW) {
      this.forget();
      this.state = { ...this.state, fromS: 0 };
      return this.begin(told, NEW);
    }
    const isShort = !told.requests.some((one) => one.request_id === newest.request_id);
    this.take(told.requests);
    const fromS = isShort ? oldestOf(told) : this.state.fromS;
    return this.tell({ atS: told.at_s, fromS, silent: told.silent, isShort, error: null });
  }

  begin(told, limit) {
    this.take(told.requests);
    const fromS = Math.min(oldestOf(told), this.state.fromS || told.at_s);
    this.tell({ atS: told.at_s, fromS, silent: told.silent, isShort: false, isWhole: told.requests.length < limit, isKnown: true, error: null });
  }

  async lookBack(signal) {
    const oldest = this.ended.at(-1);
    if (!oldest) return this.tell({ isWhole: true });
    const before = this.ended.length;
    const told = await this.ask(signal, { limit: PAGE, ended_before: endOf(oldest) + SAME_S });
    this.take(told.requests, this.running);
    if (this.ended.length === before) return this.tell({ isWhole: true });
    return this.tell({ fromS: Math.min(this.state.fromS, endOf(this.ended.at(-1))) });
  }

  async ask(signal, query) {
    const words = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)]));
    return ask(`/api/v1/requests?${words}`, { signal });
  }

  take(requests, running = requests.filter((one) => !one.outcome)) {
    this.running = running;
    const fresh = requests.filter((one) => one.outcome && !this.ids.has(one.request_id));
    if (!fresh.length) return;
    for (const one of fresh) this.ids.add(one.request_id);
    this.ended = merged(fresh, this.ended, endOf);
    this.newest = merged(fresh, this.newest, startOf);
    const over = new Set(this.ended.splice(MOST));
    if (!over.size) return;
    for (const one of over) this.ids.delete(one.request_id);
    this.newest = this.newest.filter((one) => !over.has(one));
  }

  tell(change) {
    const rows = [...this.running].sort((a, b) => b.at_s - a.at_s).concat(this.newest);
    this.state = { ...this.state, ...change, rows };
    for (const tell of this.followers) tell(this.state);
  }
}

const startOf = (request) => request.at_s;

// A few new ones among many that are in order, the largest first: without sorting all of them at each look.
function merged(fresh, known, worth) {
  const some = [...fresh].sort((a, b) => worth(b) - worth(a));
  const found = [];
  let next = 0;
  for (const one of known) {
    while (next < some.length && worth(some[next]) >= worth(one)) found.push(some[next++]);
    found.push(one);
  }
  return found.concat(some.slice(next));
}

const oldestOf = (told) => Math.min(told.at_s, ...told.requests.filter((one) => one.outcome).map(endOf));

const feed = new Feed();
export const forgetRequests = () => feed.clear();

export function useRequests() {
  const [state, setState] = useState(feed.state);
  useEffect(() => feed.follow(setState), []);
  return state;
}
