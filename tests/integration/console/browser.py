"""A headless Chromium, and the pages it shows. Skipped where none is installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
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
        page.goto(f"{cluster.url}/#ticket={made['ticket']}")
        try:
            page.get_by_role("heading", name="Overview").wait_for()
        except PlaywrightError as error:
            raise AssertionError(f"{page.inner_text('body')!r}, {complaints}") from error
        yield page
    assert not complaints, complaints


def shots() -> Path:
    """Where pictures are kept: build/console-shots, or the folder that HOSTLER_SHOTS names."""
    given = os.environ.get("HOSTLER_SHOTS")
    return Path(given) if given else Path(__file__).parents[3] / "build" / "console-shots"


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
