"""A headless Chromium, and the pages it shows. Skipped where none is installed."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)
from playwright.sync_api import Error as PlaywrightError

from hostler.testing.cluster import Cluster

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 20_000  # a bound for a busy machine; nothing here takes a second
expect.set_options(timeout=WAIT_MS)


def chromium() -> str:
    """Where it is; skips the test where it is not."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here: on Debian, apt install chromium")


@contextmanager
def browsing() -> Iterator[Browser]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def signed_in(browser: Browser, cluster: Cluster, **context: object) -> Iterator[Page]:
    """A page that came by a link. What the browser complains of fails the test."""
    complaints: list[str] = []
    made = cluster.json("POST", "/api/v1/session/tickets")
    with browser.new_context(**context) as window:  # type: ignore[arg-type]
        page = window.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: _complain(complaints, said.type, said.text))
        page.on("response", lambda got: _refused(complaints, got.status, got.url))
        loads = Loads(page)
        page.goto(f"{cluster.url}/#ticket={made['ticket']}")
        overview = page.get_by_role("heading", name="Overview")
        late = page.get_by_text("If this stays, reload the page.")
        try:
            overview.or_(late).first.wait_for()
            if not overview.is_visible():  # its first script did not come: do as it says
                loads.reloads.append(f"told to reload; {loads.troubles()}")
                page.reload()
            overview.wait_for()
        except PlaywrightError as error:
            shown = page.inner_text("body")
            raise AssertionError(f"{shown!r}, {complaints}, {loads.troubles()}") from error
        if loads.reloads:
            note(f"the page was loaded again: {loads.reloads}")
        yield page
    assert not complaints, complaints


class Loads:
    """What a page asks for: what failed, what has no answer yet, and why it loaded itself again."""

    def __init__(self, page: Page) -> None:
        self.reloads: list[str] = []
        self._failed: list[str] = []
        self._open: dict[Request, float] = {}
        page.on("request", lambda asked: self._open.update({asked: time.monotonic()}))
        page.on("requestfinished", self._finish)
        page.on("requestfailed", self._fail)
        page.on("response", self._answered)
        page.on("console", self._hear)

    def troubles(self) -> str:
        now_s = time.monotonic()
        waits = [f"{asked.url} for {now_s - at_s:.1f} s" for asked, at_s in self._open.items()]
        return f"failed: {self._failed}; without an answer: {waits}; again: {self.reloads}"

    def _answered(self, got: Response) -> None:
        if got.status >= 400:
            self._failed.append(f"{got.status} {got.url}")

    def _finish(self, asked: Request) -> None:
        self._open.pop(asked, None)

    def _fail(self, asked: Request) -> None:
        self._open.pop(asked, None)
        self._failed.append(f"{asked.failure} {asked.url}")

    def _hear(self, said: ConsoleMessage) -> None:
        if said.text.startswith("boot: "):
            self.reloads.append(f"{said.text}; {self.troubles()}")


def shots() -> Path:
    """Where pictures are kept: build/console-shots, or the folder that HOSTLER_SHOTS names."""
    given = os.environ.get("HOSTLER_SHOTS")
    return Path(given) if given else Path(__file__).parents[3] / "build" / "console-shots"


def notes() -> Path:
    """What was odd and failed no test; told at the end of the run."""
    return shots() / "notes.txt"


def note(text: str) -> None:
    shots().mkdir(parents=True, exist_ok=True)
    with notes().open("a") as file:
        file.write(text.replace("\n", " ") + "\n")


def shot(page: Page, name: str) -> None:
    """Keep a picture of the whole page, for people: no test reads it."""
    shots().mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots() / f"{name}.png", full_page=True)


# Private


def _refused(complaints: list[str], status: int, url: str) -> None:
    """Whoever is signed in is let in everywhere; the page asks /v1/models until it is so."""
    if status == 401 and not url.endswith(("/v1/models", "/v1/session")):
        complaints.append(f"401 {url}")


def _complain(complaints: list[str], kind: str, text: str) -> None:
    # what an order was answered is shown on the page, and tested there
    if kind == "error" and "Failed to load resource" not in text:
        complaints.append(text)
