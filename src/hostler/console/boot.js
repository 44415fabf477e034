// Starts the page. When a file of it does not come, it says so and asks again, a few times: a page is never just empty.
const TRIES = 3;
const PAUSE_MS = 500;
const STILL_MS = 6000; // so long nothing has come: it is not slow, it has stopped
const KEPT = "boot";

const count = () => performance.getEntriesByType("resource").length;

// Rejects when no file of the page has come for a while.
function stillness(timer) {
  let seen = count();
  let since = performance.now();
  return new Promise((_, reject) => {
    timer.id = setInterval(() => {
      if (count() > seen) [seen, since] = [count(), performance.now()];
      else if (performance.now() - since > STILL_MS) reject(new Error("nothing has come for a while"));
    }, 500);
  });
}

function askAgain(error) {
  const tries = Number(sessionStorage.getItem(KEPT) || 0) + 1;
  const isAgain = tries <= TRIES;
  const came = performance.getEntriesByType("resource").map((one) => new URL(one.name).pathname);
  console.warn(`boot: ${error.message}; came: ${came.join(" ")}`);
  document.getElementById("app").textContent = isAgain
    ? "A part of this page did not come. Asking again…"
    : `A part of this page did not come: ${error.message}. Is the server well? Reload the page to ask again.`;
  sessionStorage.setItem(KEPT, isAgain ? tries : 0);
  if (isAgain) setTimeout(() => location.reload(), PAUSE_MS * tries);
}

const timer = {};
Promise.race([import("/console/app.js"), stillness(timer)])
  .finally(() => clearInterval(timer.id))
  .then(() => sessionStorage.removeItem(KEPT), askAgain);
