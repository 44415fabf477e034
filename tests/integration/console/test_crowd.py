"""The console with a thousand instances and ten thousand requests. For times see bench/console.py."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from hostler.testing.cluster import LOOPBACK, Cluster, discard, fake_model
from hostler.testing.paper_fleet import ask_many, paper_instances
from tests.integration.console.browser import WAIT_MS, chromium, shot, signed_in
from tests.integration.console.steps import LOOKS, assert_usable_by_all, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

INSTANCES, REQUESTS = 1001, 10_000  # one of them is no paper
ROWS_MOST = 150  # in the page, of how many there are
GATEWAYS = "[gateway]\nprocesses = 2\ntimeline_requests = 10_000\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    chromium()
    cluster = Cluster(GATEWAYS + fake_model("here"), joined_at=LOOPBACK)
    try:
        cluster.start()
        with paper_instances(cluster, INSTANCES - 1) as models:
            ask_many(cluster, models, REQUESTS)
            yield cluster
    finally:
        discard(cluster)


def region(page: Page, name: str, count: int) -> Locator:
    """The table's region, once it has so many rows."""
    found = page.get_by_role("region", name=name)
    table = found.get_by_role("table")
    expect(table).to_have_attribute("aria-rowcount", str(count + 1), timeout=60_000)
    return found


def row(found: Locator, at: int) -> Locator:
    """A row by its place, counted from the head, which is 1."""
    return found.locator(f'tr[aria-rowindex="{at}"]')


def assert_few_rows(found: Locator) -> None:
    assert 10 < found.locator("tr").count() < ROWS_MOST


def assert_in_view(one: Locator, found: Locator) -> None:
    """The row is where one sees it, below the head of the table."""
    expect(one).to_be_in_viewport()
    for _ in range(WAIT_MS // 100):  # a page on a busy machine scrolls a moment later
        inner, outer = one.bounding_box(), found.bounding_box()
        if inner and outer and outer["y"] < inner["y"] < outer["y"] + outer["height"]:
            return
        one.page.wait_for_timeout(100)
    raise AssertionError(f"row at {inner}, frame at {outer}")


@pytest.mark.parametrize(("name", "count"), [("Instances", INSTANCES), ("Requests", REQUESTS)])
def test_a_long_table_has_few_rows_in_the_page_and_each_can_be_reached_by_keys(
    cluster: Cluster, browser: Browser, name: str, count: int
) -> None:
    with signed_in(browser, cluster, ignore_https_errors=True, **LOOKS["light"]) as page:
        go(page, name)
        found = region(page, name, count)
        assert_few_rows(found)
        assert_usable_by_all(page)
        shot(page, f"{name.lower()}-crowd")
        found.focus()
        page.keyboard.press("End")
        assert_in_view(row(found, count + 1), found)
        assert_few_rows(found)
        page.keyboard.press("PageUp")
        expect(row(found, count + 1)).not_to_be_in_viewport()
        page.keyboard.press("Home")
        assert_in_view(row(found, 2), found)
        # by Tab, from the first row's button on: further than what was in the page at first
        row(found, 2).get_by_role("button").first.focus()
        buttons = row(found, 2).get_by_role("button").count()
        for at in range(3, 63):
            for _ in range(buttons):
                page.keyboard.press("Tab")
            expect(row(found, at).get_by_role("button").first).to_be_focused()
        assert_in_view(row(found, 62), found)
        found.evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
        assert_in_view(row(found, count + 1), found)
        expect(row(found, 62).get_by_role("button").first).to_be_focused()
        assert_few_rows(found)


def test_a_click_on_a_head_orders_and_a_filter_stays(cluster: Cluster, browser: Browser) -> None:
    with signed_in(browser, cluster, ignore_https_errors=True, **LOOKS["light"]) as page:
        go(page, "Instances")
        found = region(page, "Instances", INSTANCES)
        head = found.get_by_role("columnheader", name="Model")
        models = found.locator("tr[data-at] td:nth-child(2)")
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", "ascending")
        expect(models.first).to_have_text("here")
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", "descending")
        expect(models.first).to_have_text("paper99")
        page.get_by_label("Filter").fill("paper4")
        found = region(page, "Instances", 110)  # paper4, paper40 to paper49
        go(page, "Models")
        go(page, "Instances")
        expect(page.get_by_label("Filter")).to_have_value("paper4")
        page.reload()
        found = region(page, "Instances", 110)
        expect(head).to_have_attribute("aria-sort", "descending")
        expect(models.first).to_have_text("paper49")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") is None
        page.get_by_label("Filter").fill("")
        go(page, "Requests")
        found = region(page, "Requests", REQUESTS)
        page.get_by_label("Model").select_option("paper7")
        expect(found.get_by_role("table")).not_to_have_attribute("aria-rowcount", "10001")
        expect(page.locator("tr[data-at] td:nth-child(3)").first).to_have_text("paper7")


def test_on_a_phone_a_long_table_scrolls_in_its_own_frame(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster, ignore_https_errors=True, **LOOKS["phone"]) as page:
        go(page, "Requests")
        found = region(page, "Requests", REQUESTS)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert_few_rows(found)
        shot(page, "requests-crowd-phone")
        found.evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
        last = row(found, REQUESTS + 1)
        last.scroll_into_view_if_needed()
        assert_in_view(last, found)
        assert_few_rows(found)


def test_what_is_in_view_stays_there_when_rows_come_above(
    cluster: Cluster, browser: Browser
) -> None:
    with signed_in(browser, cluster, ignore_https_errors=True, **LOOKS["light"]) as page:
        go(page, "Requests")
        found = region(page, "Requests", REQUESTS)
        found.evaluate("(node) => { node.scrollTop = 4000; }")
        shown = found.locator('tr[aria-rowindex="101"] button')
        expect(shown).to_be_in_viewport()
        request_id = shown.inner_text()
        here = found.locator("tr").filter(has_text=request_id)
        before = here.bounding_box()
        assert before is not None
        for number in range(25):  # of a real instance: paper ones may be slow beside a browser
            assert cluster.chat("here", f"hello {number}")[0] == 200
        expect(here).to_have_attribute("aria-rowindex", "126", timeout=30_000)
        after = here.bounding_box()
        assert after is not None
        assert abs(after["y"] - before["y"]) < 2
