"""Console: how smoothly long tables scroll, and how soon the page is there, in a real Chromium.

The server is real, with TLS and two gateways; its machines are simulated (`testing/paper_fleet.py`), its
10,000 requests went through the gateways. While a table scrolls it is asked for what is new, as ever, and
requests go on. Needs the tools of `make check`.

    python -m bench.console
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import Browser, Page
from tests.integration.console.browser import browsing, signed_in

from bench import machine
from bench.figures import Figure, Part, median, table
from hostler.testing.cluster import LOOPBACK, Cluster, discard, fake_model
from hostler.testing.paper_fleet import ask_many, paper_instances

INSTANCES, REQUESTS = 1001, 10_000  # one of them is no simulated one
ROUNDS = 5
PIXELS = 90  # a frame: 5,400 a second, quicker than a wheel
FRAMES = 900
FRAME_MS, LONG_MS = 20.0, 50.0
LOAD_KB, LOAD_S = 150.0, 1.0
WINDOW = {"width": 1280, "height": 800}

_SCROLL = """async ([pixels, count]) => {
  const box = document.querySelector("main .tall");
  const long = [], frames = [];
  let rows = 0;
  const watch = new PerformanceObserver((list) => list.getEntries().forEach((e) => long.push(e.duration)));
  watch.observe({ type: "longtask" });
  box.scrollTop = 0;
  await new Promise((done) => {
    let last, way = 1;
    const step = (now) => {
      if (last !== undefined) frames.push(now - last);
      last = now;
      rows = Math.max(rows, document.querySelectorAll("main tr").length);
      if (box.scrollTop + box.clientHeight >= box.scrollHeight - 1) way = -1;
      if (box.scrollTop <= 0) way = 1;
      box.scrollTop += way * pixels;
      if (frames.length < count) requestAnimationFrame(step);
      else done();
    };
    requestAnimationFrame(step);
  });
  watch.disconnect();
  frames.sort((a, b) => a - b);
  return { frames, long, rows };
}"""

# when the page first shows its frame with all it can do, and when it shows what the server told
_READY = """() => {
  const seen = (what) => what && performance.now();
  const watch = new MutationObserver(() => {
    window.usable ??= seen(document.querySelector("nav a"));
    window.told ??= seen(document.querySelector("main tbody tr"));
  });
  watch.observe(document, { subtree: true, childList: true });
}"""
_SIZES = """() => performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .filter((e) => !e.name.includes("/api/")).map((e) => [e.encodedBodySize, e.transferSize])"""


def measure(part: Part) -> None:
    cluster = Cluster(_CONFIG, joined_at=LOOPBACK)
    try:
        cluster.start()
        with machine.watch_noise() as noise, browsing() as browser:
            _measure_load(part, browser, cluster)
            with paper_instances(cluster, INSTANCES - 1) as models:
                ask_many(cluster, models, REQUESTS)
                with signed_in(browser, cluster, ignore_https_errors=True, viewport=WINDOW) as page:
                    for name in ("Instances", "Requests"):
                        _measure_table(part, cluster, page, name, models)
        part.add("other programs meanwhile", noise.others_cores, "cores")
    finally:
        discard(cluster)


# Private

_CONFIG = "[gateway]\nprocesses = 2\ntimeline_requests = 10_000\n" + fake_model("here")


def _measure_load(part: Part, browser: Browser, cluster: Cluster) -> None:
    """A browser that has never been here, and one that was here before. Signed in both times."""
    with signed_in(browser, cluster, ignore_https_errors=True) as page:
        state = page.context.storage_state()
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with browser.new_context(storage_state=state, ignore_https_errors=True) as window:
            page = window.new_page()
            page.add_init_script(f"({_READY})()")
            for kind in ("cold", "warm"):
                page.goto("about:blank")
                page.goto(cluster.url)
                page.locator("main tbody tr").first.wait_for()
                sizes = page.evaluate(_SIZES)
                for name, value in {
                    "files": float(len(sizes)),
                    "whole": sum(size for size, _ in sizes) / 1000,
                    "sent": sum(sent for _, sent in sizes) / 1000,
                    "usable": page.evaluate("window.usable") / 1000,
                    "told": page.evaluate("window.told") / 1000,
                }.items():
                    found.setdefault(f"{kind} {name}", []).append(value)
    part.add("page, compressed", median(found["cold whole"]), "kB", at_most=LOAD_KB)
    for kind in ("cold", "warm"):
        of = {name: median(found[f"{kind} {name}"]) for name in ("files", "sent", "usable", "told")}
        note = (
            f"{of['files']:.0f} files, {of['sent']:.0f} kB sent; with data after {of['told']:.2f} s"
        )
        part.add(f"{kind} load until usable", of["usable"], "s", at_most=LOAD_S, note=note)


def _measure_table(part: Part, cluster: Cluster, page: Page, name: str, models: list[str]) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name).click()
    count = INSTANCES if name == "Instances" else REQUESTS
    page.locator(f'main table[aria-rowcount="{count + 1}"]').wait_for(timeout=60_000)
    with _requests_going_on(cluster, models), _traced(page) as cost_ms:
        told = page.evaluate(_SCROLL, [PIXELS, FRAMES])
    frames, long = told["frames"], told["long"]
    note = f"{_spread(frames)}, longest {frames[-1]:.0f} ms; {told['rows']} rows in the page"
    part.add(
        f"{name}, {count:,} rows: a frame, p95",
        _part(frames, 0.95),
        "ms",
        at_most=FRAME_MS,
        note=note,
    )
    cost_ms.sort()
    note = f"{_spread(cost_ms)}; whoever else wants the CPU does not count"
    part.add(
        f"{name}: CPU of a frame, p95", _part(cost_ms, 0.95), "ms", at_most=FRAME_MS, note=note
    )
    over = f"of {sum(frames) / 1000:.0f} s; the longest {max(long, default=0.0):.0f} ms"
    part.add(f"{name}: tasks longer than {LONG_MS:.0f} ms", len(long), "", note=over)


@contextmanager
def _requests_going_on(cluster: Cluster, models: list[str]) -> Iterator[None]:
    """Twenty requests a second meanwhile."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            with suppress(AssertionError):  # a busy machine loses a few; they are shown, too
                ask_many(cluster, models, 10)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _traced(page: Page) -> Iterator[list[float]]:
    """Fills the list with the CPU time of each frame, in ms: what the page's main thread did for it."""
    assert page.context.browser is not None
    line = page.context.browser.new_browser_cdp_session()
    found: list[float] = []
    over = []

    def take(told: dict[str, list[dict[str, object]]]) -> None:
        frames = [one for one in told["value"] if one.get("name") == "ProxyMain::BeginMainFrame"]
        found.extend(float(str(one["tdur"])) / 1000 for one in frames if "tdur" in one)

    line.on("Tracing.dataCollected", take)
    line.on("Tracing.tracingComplete", lambda _: over.append(True))
    line.send("Tracing.start", {"traceConfig": {"includedCategories": ["cc"]}})
    yield found
    line.send("Tracing.end")
    while not over:
        page.wait_for_timeout(50)
    line.detach()


def _part(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def _spread(ordered: list[float]) -> str:
    return f"median {_part(ordered, 0.5):.1f}, p99 {_part(ordered, 0.99):.1f} ms"


def main() -> None:
    figures: list[Figure] = []
    began_s = time.monotonic()
    measure(Part("console", figures.append))
    sys.stdout.write(f"{table(figures)}\n\n{time.monotonic() - began_s:.0f} s\n")


if __name__ == "__main__":
    main()
