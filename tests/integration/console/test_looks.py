"""Every page with something on it: in the light, in the dark and on a phone. A picture of each is kept."""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from hostler.testing.cluster import Cluster, fake_model
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.steps import LOOKS, PAGES, assert_usable_by_all, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SHOWN = {  # what is there once a page has all it shows
    "Overview": "3 of 3",
    "Models": "Logs",
    "Instances": "ready",
    "Machines": "the server",
    "Requests": "under way",
    "Playground": "New conversation",
    "Keys": "In all",
    "Events": "instance.ready",
    "Settings": "gateway",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two models, one that waits for its first token, requests that went well and ill, keys."""
    chromium()
    models = [
        fake_model("qwen2.5-7b-instruct", replicas=3, tokens=40, delay_ms=4),
        fake_model("bge-small-en-v1.5", worker_type="text2vec"),
    ]
    with Cluster("[gateway]\nprocesses = 2\n" + "".join(models)) as made:
        for name in ("laptop", "nightly batch", "web shop"):
            made.json("POST", "/api/v1/keys", {"name": name})
        for number in range(30):
            made.chat("qwen2.5-7b-instruct", f"hello {number}", stream=True)
        for text in ("[[status=400]]", "[[status=500]]"):
            made.chat("qwen2.5-7b-instruct", text)
        body = {"model": "bge-small-en-v1.5", "input": ["a horse", "a coach"]}
        made.json("POST", "/v1/embeddings", body)
        with ExitStack() as open_streams:
            for _ in range(2):
                open_streams.enter_context(under_way(made, "[[hang_at=9]]"))
            yield made


@contextmanager
def under_way(cluster: Cluster, text: str) -> Iterator[None]:
    """A stream that has begun and does not end."""
    at = urlsplit(cluster.url)
    line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
    body = {
        "model": "qwen2.5-7b-instruct", "stream": True,
        "messages": [{"role": "user", "content": text}],
    }  # fmt: skip
    fields = {"authorization": f"Bearer {cluster.admin_key}", "content-type": "application/json"}
    try:
        line.request("POST", "/v1/chat/completions", json.dumps(body), fields)
        assert line.getresponse().read(6) == b"data: "
        yield
    finally:
        line.close()


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_in_every_look(cluster: Cluster, browser: Browser, look: str) -> None:
    assert set(SHOWN) == set(PAGES)
    with signed_in(browser, cluster, **LOOKS[look]) as page:
        for name in PAGES:
            go(page, name)
            there = page.locator("main").get_by_text(SHOWN[name])
            expect(there.locator("visible=true").first).to_be_visible()
            assert_usable_by_all(page)
            width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, f"{name} is wider than the window"
            shot(page, f"{name.lower()}-{look}")
        for name, button in DIALOGS:
            go(page, name)
            page.get_by_role("button", name=button).first.click()
            expect(page.get_by_role("dialog")).to_be_visible()
            assert_usable_by_all(page)
            shot(page, f"{name.lower()}-dialog-{look}")
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
        sign_out(page, look)


def test_on_a_phone_cards_are_put_in_order(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster, **LOOKS["phone"]) as page:
        go(page, "Keys")
        first = page.locator("tr[data-at]").first
        for way, name in (("▲", "admin.key"), ("▼", "web shop")):
            page.get_by_label("Order").select_option(f"Key {way}")
            expect(first).to_contain_text(name)
        page.get_by_label("Order").select_option("as it comes")
        expect(first).to_contain_text("admin.key")
    with signed_in(browser, cluster, **LOOKS["light"]) as page:
        go(page, "Keys")
        expect(page.get_by_role("columnheader", name="Key").first).to_be_visible()
        expect(page.get_by_label("Order")).to_be_hidden()


DIALOGS = (("Models", "Start a model"), ("Keys", "Create a key"))


def sign_out(page: Page, look: str) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert_usable_by_all(page)
    shot(page, f"sign-in-{look}")
