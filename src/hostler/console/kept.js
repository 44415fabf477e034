// What a page was set to, for as long as this tab is signed in: filters and orders stay when one comes back.
import { useState } from "/console/vendor/htm-preact.js";

const PREFIX = "hostler:";

function read(name, initial) {
  try {
    const text = sessionStorage.getItem(PREFIX + name);
    return text === null ? initial : JSON.parse(text);
  } catch {
    return initial; // a browser that keeps nothing
  }
}

export function useKept(name, initial) {
  const [value, setValue] = useState(() => read(name, initial));
  const set = (next) => {
    setValue(next);
    try {
      sessionStorage.setItem(PREFIX + name, JSON.stringify(next));
    } catch {
      // then it stays for this page alone
    }
  };
  return [value, set];
}

export function forgetKept() {
  try {
    for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
  } catch {
    // nothing was kept
  }
}
