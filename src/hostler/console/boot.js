// Starts the page. When a file of it did not come, it says so and asks again, a few times: a page is never just empty.
const TRIES = 3;
const PAUSE_MS = 500;
const KEPT = "boot";

import("/console/app.js").then(
  () => sessionStorage.removeItem(KEPT),
  (error) => {
    const tries = Number(sessionStorage.getItem(KEPT) || 0) + 1;
    const isAgain = tries <= TRIES;
    document.getElementById("app").textContent = isAgain
      ? "A part of this page did not come. Asking again…"
      : `A part of this page did not come: ${error.message}. Is the server well? Reload the page to ask again.`;
    sessionStorage.setItem(KEPT, isAgain ? tries : 0);
    if (isAgain) setTimeout(() => location.reload(), PAUSE_MS * tries);
  },
);
