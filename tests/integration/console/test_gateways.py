"""The console of two gateways: whichever answers, one is signed in, and what is told is of both."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from hostler.testing.cluster import Cluster, fake_model
from tests.integration.console.browser import chromium, shot, signed_in
from tests.integration.console.steps import LOOKS, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HANG = {
    "model": "echo", "stream": True, "messages": [{"role": "user", "content": "[[hang_at=2]]"}],
}  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    chromium()
    with Cluster("[gateway]\nprocesses = 2\n" + fake_model("echo", concurrency=3)) as made:
        yield made


def sockets(cluster: Cluster) -> list[Path]:
    found = sorted((cluster.state_dir / "run").glob("gateway*.sock"))
    assert len(found) == 2
    return found


@contextmanager
def asked(
    gateway: Path, method: str, path: str, headers: dict[str, str], body: Any = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer of this very gateway, as it comes."""
    line = http.client.HTTPConnection("localhost", timeout=30)
    line.sock = socket.socket(socket.AF_UNIX)
    try:
        line.sock.connect(str(gateway))
        line.request(method, path, json.dumps(body) if body else None, headers)
        yield line.getresponse()
    finally:
        line.close()


def gateway_of(page: Page) -> Any:
    """The number of the gateway that this page's connection leads to."""
    headers = "{ headers: { 'x-hostler-console': '1' } }"
    return page.evaluate(f"fetch('/status', {headers}).then((a) => a.json()).then((a) => a.number)")


def test_a_session_is_good_at_each_gateway(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster, **LOOKS["light"]) as page:
        state = page.context.storage_state()
        [cookie] = [one for one in page.context.cookies() if "session" in one["name"]]
    shown = {
        "cookie": f"{cookie['name']}={cookie['value']}", "x-hostler-console": "1",
        "host": urlsplit(cluster.url).netloc,
    }  # fmt: skip
    for gateway in sockets(cluster):
        for path in ("/api/v1/session", "/api/v1/requests", "/api/v1/models", "/v1/models"):
            with asked(gateway, "GET", path, shown) as answer:
                assert answer.status == 200, (gateway.name, path)
    met = set()
    for _ in range(40):  # the kernel chooses a gateway for each connection
        with browser.new_context(storage_state=state) as window:
            page = window.new_page()
            page.goto(cluster.url)
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            go(page, "Requests")
            met.add(gateway_of(page))
        if len(met) == 2:
            break
    assert len(met) == 2


def test_the_overview_tells_of_all_gateways_as_top_does(cluster: Cluster, browser: Browser) -> None:
    fields = {
        "authorization": f"Bearer {cluster.admin_key}", "content-type": "application/json",
    }  # fmt: skip
    first, second = sockets(cluster)
    with ExitStack() as streams:
        for gateway in (first, second, second):
            chat = asked(gateway, "POST", "/v1/chat/completions", fields, HANG)
            assert streams.enter_context(chat).read(6) == b"data: "
        top = json.loads(
            subprocess.run(
                [sys.executable, "-m", "hostler", "top", "--once", "--json"],
                env={**os.environ, "HOSTLER_STATE_DIR": str(cluster.state_dir)},
                check=True, capture_output=True,
            ).stdout
        )  # fmt: skip
        assert top["models"][0]["pace"]["in_flight"] == 3
        with signed_in(browser, cluster, **LOOKS["light"]) as page:
            card = page.locator(".card").filter(has_text="Running / waiting")
            expect(card).to_contain_text("3 / 0")
            row = page.get_by_role("row").filter(has_text="echo")
            expect(row).to_contain_text("3 / 0")
            shot(page, "overview-two-gateways")
            go(page, "Instances")
            busy = page.get_by_role("row").filter(has_text="echo")
            expect(busy).to_contain_text("3 of 3")
            go(page, "Requests")
            rows = page.get_by_role("row").filter(has_text="under way")
            expect(rows).to_have_count(3)


def test_an_instance_tells_its_first_bytes_and_its_failures(
    cluster: Cluster, browser: Browser
) -> None:
    for text in ("one", "two", "three", "[[status=500]]"):
        cluster.chat("echo", text)
    with signed_in(browser, cluster, **LOOKS["light"]) as page:
        go(page, "Instances")
        row = page.get_by_role("row").filter(has_text="echo")
        expect(row).to_contain_text("✕ 1 of 4")
        shown = row.get_by_role("cell").nth(8)
        expect(shown).to_contain_text("s / ")


PACES = """async ([rows, at, from]) => {
  const pace = await import('/console/pace.js');
  const of = pace.instancePaces(rows, at, from);
  return { now: pace.paceOf(rows, at, from), past: pace.pacesOf(rows, at, from), of: [...of] };
}"""


def test_the_pace_is_made_of_what_the_requests_tell(cluster: Cluster, browser: Browser) -> None:
    def request(at_s: float, **more: object) -> dict[str, object]:
        tries = [{"instance_id": "i1", "at_s": 0.1, "ended_s": None, "failure": ""}]
        return {
            "at_s": at_s, "took_s": 1.0, "stream": True, "outcome": "ok", "first_byte_s": 0.5,
            "events": 4, "completion_tokens": 10, "tries": tries, "model": "m", **more,
        }  # fmt: skip

    lost = {"instance_id": "i2", "at_s": 0.0, "ended_s": 0.1, "failure": "lost"}
    rows = [
        request(100 - n, tries=[lost, {**lost, "instance_id": "i1", "failure": ""}])
        for n in range(1, 6)
    ]
    rows.append(request(97.0, outcome="timeout", completion_tokens=None, first_byte_s=3.0))
    rows.append(request(99.0, outcome=None, completion_tokens=None, first_byte_s=None, tries=[]))
    rows.append(request(98.0, outcome=None, completion_tokens=None, took_s=2.0))
    rows.append(request(10.0))  # long ago
    with signed_in(browser, cluster) as page:
        found = page.evaluate(PACES, [rows, 100.0, 0.0])
    now = found["now"]
    assert (now["busy"], now["waiting"]) == (1, 1)
    assert now["requests"] == pytest.approx(0.6)
    assert now["failed"] == pytest.approx(0.1)
    assert now["tokens"] == pytest.approx((5 * 10 + 4 + 4) / 10)
    assert (now["p50"], now["p99"]) == (0.5, 3.0)
    assert sum(one["requests"] for one in found["past"][::-5]) == pytest.approx(0.7)
    of = dict(found["of"])
    assert (of["i2"]["ended"], of["i2"]["failed"], of["i2"]["firsts"]) == (5, 5, [])
    assert (of["i1"]["busy"], of["i1"]["failed"]) == (1, 1)


WENT_ON = """async ([request]) => {
  const { instancePaces } = await import('/console/pace.js');
  const { phases } = await import('/console/pages/requests.js');
  return { of: [...instancePaces([request], 100, 0)], phases: phases(request) };
}"""


def test_a_stream_that_went_on_elsewhere_is_drawn_and_counted_where_it_was(
    cluster: Cluster, browser: Browser
) -> None:
    one = {"instance_id": "i1", "at_s": 0.1, "ended_s": 1.4, "failure": "lost", "why": ""}
    two = {"instance_id": "i2", "at_s": 1.5, "ended_s": 3.0, "failure": "", "why": ""}
    request = {
        "at_s": 90, "took_s": 3.0, "stream": True, "outcome": "ok", "first_byte_s": 0.3,
        "events": 80, "completion_tokens": 80, "tries": [one, two], "model": "m",
    }  # fmt: skip
    with signed_in(browser, cluster) as page:
        found = page.evaluate(WENT_ON, [request])
    assert dict(found["of"])["i2"]["firsts"] == []  # not below zero: the first byte was another's
    assert [(p["kind"], p["from"], p["to"]) for p in found["phases"]] == [
        ("queue", 0, 0.1), ("prefill", 0.1, 0.3), ("decode", 0.3, 1.4), ("decode", 1.5, 3.0),
    ]  # fmt: skip
